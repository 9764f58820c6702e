// How a layer's router chooses, as Python holds it.
#pragma once

#include "bindings/array.h"
#include "route.h"

namespace latentkv {

// Checked, with the bias that it keeps alive.
struct RoutingRule {
  Routing routing;
  std::int64_t experts;
  nanobind::object kept;
};

}  // namespace latentkv
