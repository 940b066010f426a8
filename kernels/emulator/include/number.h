// A number of half precision that is computed with as CUDA's classes are.
#pragma once

#include <type_traits>

#include "../../common.cuh"

namespace host {

/// Of the bits of `Held`, which is F16 or Bf16.
template <class Held> struct Number {
  Held held;

  Number() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Number(T x) : held(narrow<Held>(static_cast<float>(x))) {}

  static Number of(Held held) {
    Number number;
    number.held = held;
    return number;
  }

  operator float() const { return widen(held); }

  Number operator-() const { return -float(*this); }
  Number &operator+=(Number x) { return *this = *this + x; }
  Number &operator-=(Number x) { return *this = *this - x; }
  Number &operator*=(Number x) { return *this = *this * x; }
  Number &operator/=(Number x) { return *this = *this / x; }

  friend Number operator+(Number a, Number b) { return float(a) + float(b); }
  friend Number operator-(Number a, Number b) { return float(a) - float(b); }
  friend Number operator*(Number a, Number b) { return float(a) * float(b); }
  friend Number operator/(Number a, Number b) { return float(a) / float(b); }
  friend bool operator==(Number a, Number b) { return float(a) == float(b); }
  friend bool operator!=(Number a, Number b) { return float(a) != float(b); }
  friend bool operator<(Number a, Number b) { return float(a) < float(b); }
  friend bool operator>(Number a, Number b) { return float(a) > float(b); }
  friend bool operator<=(Number a, Number b) { return float(a) <= float(b); }
  friend bool operator>=(Number a, Number b) { return float(a) >= float(b); }
};

} // namespace host

template <class T> bool __hisnan(host::Number<T> x) { return std::isnan(float(x)); }
template <class T> host::Number<T> __habs(host::Number<T> x) { return fabsf(x); }
template <class T> host::Number<T> hsqrt(host::Number<T> x) { return sqrtf(x); }
template <class T> host::Number<T> hcos(host::Number<T> x) { return cosf(x); }
template <class T> host::Number<T> hsin(host::Number<T> x) { return sinf(x); }
template <class T> host::Number<T> hexp(host::Number<T> x) { return expf(x); }
template <class T> host::Number<T> hlog(host::Number<T> x) { return logf(x); }
template <class T> host::Number<T> __hmax_nan(host::Number<T> a, host::Number<T> b) {
  return __hisnan(a) || a > b ? a : b;
}
template <class T> host::Number<T> __hmin_nan(host::Number<T> a, host::Number<T> b) {
  return __hisnan(a) || a < b ? a : b;
}
