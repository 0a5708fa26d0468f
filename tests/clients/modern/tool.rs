//! A built program with a home of its own.

use std::path::{Path, PathBuf};

use super::programs::commands_of;
use crate::clients::folder::Folder;
use crate::clients::program::{fail, run};

pub struct Tool {
    program: PathBuf,
    pub home: Folder,
}

impl Tool {
    /// The program whose command has its name.
    pub fn new(name: &str) -> Self {
        Self { program: commands_of(name).join(name), home: Folder::new() }
    }

    /// Runs it in its home, and returns its standard output.
    pub fn run(&self, args: &[&str]) -> String {
        self.command(run, args)
    }

    /// Runs it with a file as its standard input.
    pub fn run_with_input(&self, file: &str, args: &[&str]) -> String {
        let program = self.program.to_str().expect("a plain path");
        let args = [&["-c", "file=$0; exec \"$@\" <\"$file\"", file, program], args].concat();
        self.environment(|environment| run(Path::new("sh"), &args, environment))
    }

    /// Runs a command that must fail, and returns what it prints.
    pub fn fail(&self, args: &[&str]) -> String {
        self.command(fail, args)
    }

    fn command(&self, run: impl Fn(&Path, &[&str], &[(&str, &str)]) -> String, args: &[&str]) -> String {
        let (home, program) = (self.home.at(""), self.program.to_str().expect("a plain path"));
        let args = [&["--chdir", &home, program], args].concat();
        self.environment(|environment| run(Path::new("env"), &args, environment))
    }

    /// Everything that a program reads and writes for its user is in its home.
    fn environment<T>(&self, with: impl FnOnce(&[(&str, &str)]) -> T) -> T {
        let home = |entry| self.home.at(entry);
        let own = [
            ("HOME", home("")),
            ("DOCKER_CONFIG", home(".docker")),
            ("XDG_CACHE_HOME", home(".cache")),
            ("XDG_CONFIG_HOME", home(".config")),
            ("XDG_DATA_HOME", home(".data")),
            ("COSIGN_PASSWORD", "of a test".to_owned()),
        ];
        with(&own.each_ref().map(|(name, value)| (*name, value.as_str())))
    }
}
