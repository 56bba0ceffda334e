@testable import MartletTokenizers
