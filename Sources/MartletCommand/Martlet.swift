import ArgumentParser
import MartletCatalog

@main struct Martlet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "martlet", abstract: "Efficient sequence models: build, compare, train and run them.", version: martletVersion,
    subcommands: [CompareCommand.self, TrainCommand.self, GenerateCommand.self])
}
