// The Python module latentkv._native (src/latentkv/_native.pyi): instruction sets by name, their ops as methods.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/ops.h"
#include "cpu.h"

namespace nb = nanobind;
using namespace latentkv;

namespace {

nb::tuple isas_here() {
  nb::list usable;
  for (const Isa& isa : built_isas()) {
    if (runs_here(isa)) usable.append(nb::cast(&isa, nb::rv_policy::reference));
  }
  return nb::tuple(usable);
}

// ShapeError belongs to the Python package; `python_type` is that class.
void translate_shape_error(const std::exception_ptr& error, void* python_type) {
  try {
    std::rethrow_exception(error);
  } catch (const ShapeError& shape) {
    PyErr_SetString(static_cast<PyObject*>(python_type), shape.what());
  }
}

}  // namespace

NB_MODULE(_native, m) {
  nb::exception<Declined>(m, "DeclinedError");
  nb::register_exception_translator(translate_shape_error,
                                    nb::module_::import_("latentkv.errors").attr("ShapeError").inc_ref().ptr());
  nb::class_<Isa> isa(m, "Isa");
  isa.def_prop_ro("name", [](const Isa& self) { return self.name; });
  bind_attention(isa);
  bind_route(m);
  bind_blocks(m, isa);
  bind_ceiling(isa);
  bind_head_form(isa);
  bind_linear(m, isa);
  bind_project(isa);
  bind_rms_norm(isa);
  bind_rotate_query(isa);
  bind_write_latent(isa);
  bind_write_rows(isa);
  m.def("isas", &isas_here, "The instruction sets that were built and that this CPU has; the default is the first.");
  m.def("cpu_flags", &cpu_flags, "The instruction set extensions that CPU and operating system offer.");
}
