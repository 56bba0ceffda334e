import ArgumentParser
import MartletCatalog
import MartletTraining

@main struct Martlet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "martlet",
    abstract: "Efficient sequence models: build, compare, train and run them.",
    discussion: """
      A fair comparison:  martlet compare --task 'listops?small' --mixers softmax,gla,s4 --budget 30s --out runs/first
      What there is:      martlet methods --status ready
      One method whole:   martlet describe gla
      A claim re-run:     martlet reproduce gla --json

      Exit status: 0 done, and every verdict holds; 1 a verdict fails; 2 bad usage or input; 130 interrupted. \
      `martlet --generate-completion-script bash` (or zsh, fish) prints completions for the shell.
      """,
    version: "\(martletVersion) (libtorch \(Engine.torchVersion))",
    subcommands: [
      MethodsCommand.self, DescribeCommand.self, ProbeCommand.self, ReproduceCommand.self, CompareCommand.self, TrainCommand.self,
      GenerateCommand.self, EmbedCommand.self, EvaluateCommand.self, TokenizeCommand.self, InspectCommand.self, ConvertCommand.self,
      LinearizeCommand.self,
      RunsCommand.self, BenchCommand.self,
    ])

  static func main() { CommandLineErrors.run(Array(CommandLine.arguments.dropFirst())) }
}
