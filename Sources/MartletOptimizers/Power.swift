import Foundation

/// The power of a float64, so that the files of the rules need no Foundation (whose names clash with tensors' functions).
func power(_ base: Double, _ exponent: Double) -> Double { pow(base, exponent) }
func power(_ base: Double, _ exponent: Int) -> Double { pow(base, Double(exponent)) }
