#include "bindings/linear.h"

namespace latentkv {
namespace {

void check_job(const LinearJob& job) {
  expect_size("inputs", job.weight->cols, job.x.cols);
  expect_size("outputs", job.weight->rows, job.out.cols);
  expect_size("rows of out", job.x.rows, job.out.rows);
  if (job.gate != nullptr) check_gate(*job.weight, *job.gate);
  if (job.residual.data != nullptr) {
    expect_size("rows of the residual", job.out.rows, job.residual.rows);
    expect_size("columns of the residual", job.out.cols, job.residual.cols);
  }
}

}  // namespace

void check_gate(const LinearWeight& weight, const LinearWeight& gate) {
  expect_size("outputs of the gate", weight.rows, gate.rows);
  expect_size("inputs of the gate", weight.cols, gate.cols);
  const bool alike = weight.format == gate.format && weight.group == gate.group;
  if (!alike) throw Declined("gate: another format than the weight");
}

Matrix rows_of(const Matrix& matrix, std::int64_t first, std::int64_t count) {
  char* data = static_cast<char*>(matrix.data) + first * matrix.stride * (matrix.dtype == DType::f32 ? 4 : 2);
  return {data, matrix.dtype, count, matrix.cols, matrix.stride};
}

void LinearCall::add(const LinearJob& job) {
  check_job(job);
  if (job.out.cols == 0) return;
  LinearJob part = job;
  part.narrow = narrow_;
  const std::int64_t rows = isa_.kernels->linear_rows(part, integer_);
  for (std::int64_t row = 0; row < job.x.rows; row += rows) {
    const std::int64_t count = job.x.rows - row < rows ? job.x.rows - row : rows;
    part.x = rows_of(job.x, row, count);
    part.out = rows_of(job.out, row, count);
    if (job.residual.data != nullptr) part.residual = rows_of(job.residual, row, count);
    jobs_.push_back(part);
  }
}

void LinearCall::run(Buffer& scratch) {
  if (jobs_.empty()) return;
  LinearParams p{jobs_.data(), static_cast<std::int64_t>(jobs_.size()), integer_, threads_, nullptr};
  p.scratch = reinterpret_cast<char*>(scratch.floats(isa_.kernels->linear_scratch(p) / static_cast<std::int64_t>(sizeof(float))));
  isa_.kernels->linear(p);
  jobs_.clear();
}

}  // namespace latentkv
