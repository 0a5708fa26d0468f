//! Command-line options.

use std::path::PathBuf;

pub const USAGE: &str = "make bench ARGS=\"[--rounds N] [--only WORD]... [--write FILE] [--list]\"
  --rounds N     how often each case is measured on each server (7)
  --only WORD    only cases whose names contain this; more than one may be given
  --write FILE   also put the tables between the marks of this file
  --list         only say what the cases are";

pub struct Options {
    pub rounds: usize,
    pub only: Vec<String>,
    pub write: Option<PathBuf>,
    pub list: bool,
}

impl Options {
    /// # Errors
    /// A message that names the invalid option.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { rounds: 7, only: Vec::new(), write: None, list: false };
        // Cargo passes `--bench` to every bench.
        let mut args = args.filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || {
                let value = args.next().filter(|value| !value.starts_with("--"));
                value.ok_or_else(|| format!("{arg} needs a value"))
            };
            match arg.as_str() {
                "--rounds" => {
                    let rounds = value()?.parse().ok().filter(|rounds| *rounds > 0);
                    options.rounds = rounds.ok_or("--rounds needs a number of at least 1")?;
                }
                "--only" => options.only.push(value()?),
                "--write" => options.write = Some(value()?.into()),
                "--list" => options.list = true,
                other => return Err(format!("unknown option {other}")),
            }
        }
        if options.write.is_some() && !options.only.is_empty() {
            return Err("--write replaces all tables, so it cannot be combined with --only".to_owned());
        }
        Ok(options)
    }

    pub fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| case.contains(word.as_str()))
    }
}
