import ArgumentParser
import Foundation
import MartletCatalog
import MartletTraining

/// How the program ends: every error as `error: …` on standard error, and the exit statuses that scripts rely on.
enum CommandLineErrors {
  /// A verdict of a reproduction fails.
  static let verdictFails = ExitCode(1)
  /// Bad usage or input.
  static let badUsage = ExitCode(2)
  /// Ended by Ctrl-C.
  static let interrupted = ExitCode(130)

  /// Runs the command that the arguments name, and ends the process.
  static func run(_ arguments: [String]) -> Never {
    // A reader that goes away (`| head`) ends the program quietly, also where the parent process had set the signal to be ignored.
    signal(SIGPIPE, SIG_DFL)
    do {
      try checkSubcommand(arguments)
      var command = try Martlet.parseAsRoot(arguments)
      do { try command.run() } catch { finish(running: error) }
      Martlet.exit()
    } catch {
      finish(parsing: error)
    }
  }

  /// ArgumentParser calls a misspelt command an unexpected argument; this names the nearest.
  private static func checkSubcommand(_ arguments: [String]) throws {
    guard let word = arguments.first, !word.hasPrefix("-") else { return }
    let names = Martlet.configuration.subcommands.map { $0._commandName } + ["help"]
    guard !names.contains(word) else { return }
    throw ValidationError(
      "there is no command “\(word)”.\(Suggestions.phrase(for: word, in: names)) Commands: \(names.joined(separator: ", "))")
  }

  /// Ends with what ArgumentParser says of arguments that don't fit: the message and the usage of the command.
  private static func finish(parsing error: any Error) -> Never {
    if Martlet.exitCode(for: error).isSuccess { Martlet.exit(withError: error) }
    if let error = error as? ValidationError { fail(error.message) }
    var text = Martlet.fullMessage(for: error)
    if text.hasPrefix("Error: ") { text.removeFirst("Error: ".count) }
    fail(text)
  }

  private static func finish(running error: any Error) -> Never {
    // A request for help is an error to ArgumentParser, and a status that a command asks for has no message.
    if error is ExitCode || Martlet.exitCode(for: error).isSuccess { Martlet.exit(withError: error) }
    switch error {
    case let error as ValidationError: fail(error.message)
    case is InterruptedError: fail("\(error)", interrupted)
    // Foundation's own errors describe themselves for debugging only.
    case is CocoaError, is POSIXError: fail(error.localizedDescription)
    default: fail("\(error)")
    }
  }

  private static func fail(_ message: String, _ status: ExitCode = badUsage) -> Never {
    fflush(nil)
    Output.note("error: \(message)")
    Foundation.exit(status.rawValue)
  }
}
