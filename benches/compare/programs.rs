//! External programs, all from Debian packages.

use std::path::PathBuf;
use std::process::Command;

const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
/// Program and package.
const NEEDED: [(&str, &str); 4] =
    [("nginx", "nginx-light"), ("docker-registry", "docker-registry"), ("wrk", "wrk"), ("strace", "strace")];

/// The path of a program, first in Debian's folders.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = FOLDERS.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

pub fn path(name: &str) -> PathBuf {
    find(name).expect("`check` has found it at the start")
}

/// # Errors
/// The missing programs, and the command that installs them.
pub fn check() -> Result<(), String> {
    let missing: Vec<_> = NEEDED.iter().filter(|(name, _)| find(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    Err(format!("missing: {}. On Debian: apt-get install {}", names.join(", "), packages.join(" ")))
}

/// The versions of the measured servers and of wrk.
pub fn versions() -> String {
    let version = |name: &str, flag: &str| {
        let output = Command::new(path(name)).arg(flag).output().expect("the program can be started");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let number = text.split([' ', '/', '\n']).find(|word| word.contains(|c: char| c.is_ascii_digit()));
        format!("{name} {}", number.unwrap_or("of unknown version"))
    };
    [version("nginx", "-v"), version("docker-registry", "--version"), version("wrk", "-v")].join(", ")
}
