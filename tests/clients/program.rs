//! Finding and running the programs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian puts them first: another version elsewhere on the path is not what is tested.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// A door that is closed for everybody but the loopback, so that a client which falls back to the
/// real registry fails instead of passing.
pub const NOWHERE: [(&str, &str); 6] = [
    ("HTTP_PROXY", "http://127.0.0.1:1"),
    ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ("NO_PROXY", "127.0.0.1,localhost"),
    ("http_proxy", "http://127.0.0.1:1"),
    ("https_proxy", "http://127.0.0.1:1"),
    ("no_proxy", "127.0.0.1,localhost"),
];

/// The path of a program; fails the test when it is not installed.
pub fn find(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = FOLDERS.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: `make test` installs it, or `apt-get install {package}`"))
}

/// Runs a program for at most two minutes, with no way out of the machine; fails the test when it
/// fails. What it wrote to its standard output comes back.
pub fn run(program: &Path, args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(program)
        .args(args)
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .envs(NOWHERE)
        .envs(environment.iter().copied())
        .output();
    let output = output.expect("timeout, of coreutils, can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
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

/// One of its kind at a time on the whole machine, while this lives: tests may run as threads or as
/// processes, so the turn is a lock on a file.
pub struct Turn {
    _locked: File,
}

impl Turn {
    pub fn take(kind: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roadstead-tests-{kind}.lock"));
        let file = File::options().create(true).append(true).open(path);
        let file = file.expect("the lock file can be made");
        file.lock().expect("a turn comes to who waits");
        Self { _locked: file }
    }
}

#[test]
#[should_panic(expected = "`apt-get install some-package`")]
fn a_missing_program_fails_the_test_and_says_what_to_do() {
    find("no-such-program", "some-package");
}
