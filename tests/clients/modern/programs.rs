//! The list of programs that are built, and where they are.

use std::path::{Path, PathBuf};

/// One line of `programs.txt`.
struct Program {
    name: &'static str,
    version: &'static str,
}

impl Program {
    /// The version as people write it, without the marks of Go.
    fn short_version(&self) -> &'static str {
        self.version.trim_start_matches('v').trim_end_matches("+incompatible")
    }
}

fn listed() -> impl Iterator<Item = Program> {
    let lines = include_str!("../programs.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(Program { name: words.next()?, version: words.next()? })
    })
}

/// The folder of `build.sh`.
fn tools() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CLIENT_TOOLS").unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        cache.expect("HOME is set").join("roadstead/tools")
    })
}

/// The folder with the commands of a program; fails the test if it was not built.
pub fn commands_of(name: &str) -> PathBuf {
    let program = listed().find(|program| program.name == name);
    let program = program.unwrap_or_else(|| panic!("{name} is not in programs.txt"));
    let folder = tools().join(format!("{name}-{}", program.version));
    assert!(folder.is_dir(), "{name} {} is not built: {}", program.version, reason(&folder));
    folder.join("bin")
}

fn reason(folder: &Path) -> String {
    let log = std::fs::read_to_string(format!("{}.log", folder.display())).unwrap_or_default();
    log.lines().last().unwrap_or("run `make clients`").to_owned()
}

#[test]
fn documented_versions_are_those_that_are_built() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.contains("`clients::modern::")).collect();
    for program in listed() {
        let version = program.short_version();
        let names = |row: &&&str| row.split([' ', ',']).any(|word| word == version);
        assert!(rows.iter().any(|row| names(&row)), "docs/clients.md does not name {} {version}", program.name);
    }
}
