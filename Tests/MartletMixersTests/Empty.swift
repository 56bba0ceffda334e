import Testing
@testable import MartletMixers
