import Testing
@testable import MartletCatalog
