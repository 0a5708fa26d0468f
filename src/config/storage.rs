//! `[storage]`: the one folder that everything lives in.

use std::path::{Path, PathBuf};

/// Where a server that belongs to the system keeps its data.
const SYSTEM_PATH: &str = "/var/lib/roadstead";

#[derive(Clone, Debug, PartialEq)]
pub struct StorageConfig {
    pub path: PathBuf,
    /// Nothing is written: no pushes, no deletes, and what is not here passes by.
    pub read_only: bool,
}

// === impl StorageConfig ===

impl StorageConfig {
    /// The data folder of a user: `/var/lib/roadstead` for root, below `XDG_DATA_HOME` or `HOME` for anybody else.
    pub(super) fn of_user(root: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        // The XDG specification has a relative path here ignored.
        let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
        let path = match root {
            true => None,
            false => home().map(|data| data.join("roadstead")),
        };
        Self { path: path.unwrap_or_else(|| Path::new(SYSTEM_PATH).to_owned()), read_only: false }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { path: SYSTEM_PATH.into(), read_only: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_follows_the_user() {
        let home = ("HOME", "/home/ann");
        let cases = [
            (true, vec![home], "/var/lib/roadstead"),
            (false, vec![home, ("XDG_DATA_HOME", "/data")], "/data/roadstead"),
            (false, vec![home], "/home/ann/.local/share/roadstead"),
            (false, vec![home, ("XDG_DATA_HOME", "rel")], "/home/ann/.local/share/roadstead"),
            (false, vec![], "/var/lib/roadstead"),
        ];
        for (root, variables, expected) in cases {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(StorageConfig::of_user(root, variable).path, Path::new(expected));
        }
    }
}
