@_exported import MartletAdapters
@_exported import MartletData
@_exported import MartletModels
@_exported import MartletOptimizers
