//! `roadstead completions`: prints the completion script for a shell.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::output::print_bytes;
use super::{Cli, CliError};

#[derive(Args, Debug)]
pub struct Completions {
    /// The shell.
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

// === impl Completions ===

impl Completions {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "roadstead", &mut script);
        print_bytes(&script)
    }
}
