// Codes of weights times whole numbers of x, by the instructions there are: four neighbours of each output in a vector, four
// or two of them in a product.
#pragma once

#include "kernels/linear_codes.h"
#include "kernels/transpose.h"

namespace latentkv::LATENTKV_ISA {

constexpr std::int64_t kMostGroup = 128;

// int4 codes and int8 of x.
template <int W>
struct NibbleProducts {
  using D = Dot<W>;
  using U = typename D::U;
  using Partial = typename D::Partial;
  using Element = std::int8_t;
  static constexpr int kPieces = 2;            // vectors of codes that one from memory is unpacked to
  static constexpr std::int64_t kInputs = 8;   // in one from memory
  static constexpr std::int64_t kChunk = 32;   // that a Partial can hold
  static constexpr bool kNarrowSums = D::kNarrowSums;
  static constexpr bool kBoundsPairs = false;  // of x: whether its largest number or sum of two neighbours becomes 127

  static U piece(U codes, int i) { return i == 0 ? codes & 0x0f0f0f0fu : codes >> 4 & 0x0f0f0f0fu; }
  static Partial add(Partial sum, U codes, U x) { return D::add_codes(sum, codes, x); }
  // `factor` times what was added.
  static typename D::I total(Partial sum, std::int32_t factor = 1) { return D::total(sum, factor); }
  static constexpr bool kHasZero = true;
  static std::int32_t zero(const LinearWeight& weight) { return weight.zero; }

  // W numbers of x, four to a word of x.
  static void store(typename D::I numbers, char* to) {
    const auto bytes = D::low_bytes(numbers);
    __builtin_memcpy(to, &bytes, sizeof bytes);
  }
};

// int8 codes and int8 of x, where such products add up without overflow or x is rounded so that they do.
template <int W, bool Bytes>
struct ByteProducts {
  using D = Dot<W>;
  using U = typename D::U;
  using Partial = typename D::I;
  using Element = std::int8_t;
  static constexpr int kPieces = 1;
  static constexpr std::int64_t kInputs = 4, kChunk = kMostGroup;
  static constexpr bool kNarrowSums = false, kBoundsPairs = !D::kBytes;

  static U piece(U codes, int) { return D::offset_bytes(codes); }
  static Partial add(Partial sum, U codes, U x) { return D::add_bytes(sum, codes, x); }
  static typename D::I total(Partial sum, std::int32_t = 1) { return sum; }
  static constexpr bool kHasZero = D::kOffset != 0;
  static std::int32_t zero(const LinearWeight&) { return D::kOffset; }
  static void store(typename D::I numbers, char* to) { NibbleProducts<W>::store(numbers, to); }
};

// int8 codes and int16 of x.
template <int W>
struct ByteProducts<W, false> {
  using D = Dot<W>;
  using U = typename D::U;
  using Partial = typename D::I;
  using Element = std::int16_t;
  static constexpr int kPieces = 2;
  static constexpr std::int64_t kInputs = 4, kChunk = kMostGroup;
  static constexpr bool kNarrowSums = false, kBoundsPairs = false;

  static U piece(U codes, int i) { return i == 0 ? D::even_bytes(codes) : D::odd_bytes(codes); }
  static Partial add(Partial sum, U codes, U x) { return D::add_pairs(sum, codes, x); }
  static typename D::I total(Partial sum, std::int32_t = 1) { return sum; }
  static constexpr bool kHasZero = false;
  static std::int32_t zero(const LinearWeight&) { return 0; }

  // Two to a word of x, the even ones of four neighbours before the odd ones.
  static void store(typename D::I numbers, char* to) {
    const auto words = swap_middle(__builtin_convertvector(numbers, typename Lanes<Element, W>::type),
                                   typename Counting<W>::type{});
    __builtin_memcpy(to, &words, sizeof words);
  }

 private:
  template <typename V, int... N>
  static V swap_middle(V words, Numbers<N...>) {
    return __builtin_shufflevector(words, words, (N % 4 == 1 ? N + 1 : N % 4 == 2 ? N - 1 : N)...);
  }
};

// Terms of x, the numbers that several of them make of one: how many are wanted to lose nothing, and how many steps of one make
// a step of the term before.
template <typename Products>
constexpr int kExactTerms = sizeof(typename Products::Element) == 2 ? 2 : 3;
template <typename Products>
constexpr float kTermSteps = sizeof(typename Products::Element) == 2 ? 65534.0f : 254.0f;

// The sums of a group for each term. Where sums are widened anyhow, the last two of three become one on the way, in steps of the
// last.
template <typename Products, int Terms>
struct TermSums {
  static constexpr bool kJoined = Products::kNarrowSums && Terms == 3;
  static constexpr int kCount = kJoined ? 2 : Terms;
  // A step of the last sum in steps of the one before.
  static constexpr float kStep = 1.0f / (kJoined ? kTermSteps<Products> * kTermSteps<Products> : kTermSteps<Products>);

  static constexpr int place(int term) { return smaller(term, kCount - 1); }
  static constexpr std::int32_t factor(int term) { return kJoined && term == 1 ? static_cast<std::int32_t>(kTermSteps<Products>) : 1; }
};

}  // namespace latentkv::LATENTKV_ISA
