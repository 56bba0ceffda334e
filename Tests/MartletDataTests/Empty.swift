import Testing
@testable import MartletData
