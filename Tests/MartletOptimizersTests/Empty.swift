import Testing
@testable import MartletOptimizers
