//! The `roadstead` program: parses the command line, runs the command, and reports its error.

use std::process::ExitCode;

use clap::Parser;
use roadstead::cli::Cli;
use roadstead::printable;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("roadstead: {}", printable::lines(&error.to_string()));
            error.exit_code()
        }
    }
}
