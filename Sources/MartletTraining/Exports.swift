@_exported import MartletData
@_exported import MartletModels
@_exported import MartletOptimizers
