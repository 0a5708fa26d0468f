//! Finds and runs programs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folders of Debian packages first, so that no other version on the path is tested.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// Proxy settings that block everything but loopback, so that a client which falls back to the real registry fails.
pub const NO_INTERNET: [(&str, &str); 6] = [
    ("HTTP_PROXY", "http://127.0.0.1:1"),
    ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ("NO_PROXY", "127.0.0.1,localhost"),
    ("http_proxy", "http://127.0.0.1:1"),
    ("https_proxy", "http://127.0.0.1:1"),
    ("no_proxy", "127.0.0.1,localhost"),
];

/// The path of a program; fails the test if it is not installed.
pub fn find(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = FOLDERS.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: `make test` installs it, or `apt-get install {package}`"))
}

/// Runs a program for at most two minutes, without access to the internet, and returns its standard output. Fails the
/// test if the program fails.
pub fn run(program: &Path, args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = output_of(program, args, environment);
    assert!(
        output.status.success(),
        "{} {} failed with {}\n{}\n{}",
        program.display(),
        args.join(" "),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a program that must fail, and returns all that it prints.
pub fn fail(program: &Path, args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = output_of(program, args, environment);
    let printed = text(&[output.stdout, output.stderr].concat());
    assert!(!output.status.success(), "{} {args:?} should have failed: {printed}", program.display());
    printed
}

fn output_of(program: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(program)
        .args(args)
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .envs(NO_INTERNET)
        .envs(environment.iter().copied())
        .output();
    output.expect("timeout, of coreutils, can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Allows one test of its kind at a time on the machine. Tests may run as threads or processes, so this is a file lock.
pub struct MachineLock {
    _locked: File,
}

impl MachineLock {
    pub fn take(kind: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roadstead-tests-{kind}.lock"));
        let file = File::options().create(true).append(true).open(path);
        let file = file.expect("the lock file can be created");
        file.lock().expect("the lock is granted in turn");
        Self { _locked: file }
    }
}

#[test]
#[should_panic(expected = "`apt-get install some-package`")]
fn a_missing_program_fails_the_test_and_names_its_package() {
    find("no-such-program", "some-package");
}
