@_exported import MartletFormats
