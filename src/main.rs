//! The `roadstead` program: parses the command line, runs the command, and reports its error.

use std::process::ExitCode;

use roadstead::cli::Cli;
use roadstead::printable;

fn main() -> ExitCode {
    let cli = Cli::from_arguments(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("roadstead: {}", printable::lines(&error.to_string()));
            error.exit_code()
        }
    }
}
