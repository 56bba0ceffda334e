import Testing
@testable import MartletTraining
