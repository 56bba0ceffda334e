import Testing
@testable import MartletNN
