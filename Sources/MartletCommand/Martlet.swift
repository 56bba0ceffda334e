import MartletCatalog
@main struct Martlet { static func main() { print(Engine.torchVersion) } }
