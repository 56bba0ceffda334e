@_exported import Martlet
@_exported import MartletTraining
@_exported import MartletInference
