//! `roadstead hash-password`: makes the hash of a password for the file of users, where there is no `htpasswd`.

use std::io::{self, IsTerminal, Read, Write};

use clap::Args;

use super::CliError;
use super::output::print;
use crate::access::hash_password;
use crate::config::is_user_name;

/// Longest input in bytes. A password that is too long for bcrypt gives an error of its own.
const MAX_INPUT_BYTES: u64 = 4 << 10;

#[derive(Args, Debug)]
pub struct HashPassword {
    /// Print the whole line of this user instead of the hash alone.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

// === impl HashPassword ===

impl HashPassword {
    pub(super) fn run(self) -> Result<(), CliError> {
        if let Some(name) = self.user.as_deref().filter(|name| !is_user_name(name)) {
            return Err(CliError::UserName(name.to_owned()));
        }
        if io::stdin().is_terminal() {
            // Not fatal: the prompt is a help for people.
            let _ = io::stderr().write_all(b"Password, which is shown as you type it: ");
        }
        let mut input = Vec::new();
        io::stdin().take(MAX_INPUT_BYTES).read_to_end(&mut input).map_err(CliError::Input)?;
        let hash = hash_password(without_newline(&input)).map_err(CliError::Password)?;
        match self.user {
            Some(name) => print(&format!("{name}:{hash}\n")),
            None => print(&format!("{hash}\n")),
        }
    }
}

/// One line end is of the terminal or of `echo`, and not of the password.
fn without_newline(input: &[u8]) -> &[u8] {
    let line = input.strip_suffix(b"\n").unwrap_or(input);
    if line.len() < input.len() { line.strip_suffix(b"\r").unwrap_or(line) } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_removed() {
        for (input, password) in
            [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a\r", "a\r"), ("\n", ""), (" a \n", " a ")]
        {
            assert_eq!(without_newline(input.as_bytes()), password.as_bytes(), "{input:?}");
        }
    }
}
