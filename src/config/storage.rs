//! `[storage]`: the one folder that everything lives in.

use std::path::{Path, PathBuf};

/// Where a server that belongs to the system keeps its data.
const SYSTEM_PATH: &str = "/var/lib/roadstead";

/// Where the image of `registry:2` has its volume: who mounts something there means it as the data folder.
const REGISTRY_PATH: &str = "/var/lib/registry";

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

    /// The same, or `/var/lib/registry` where that is mounted and this is not. `mounts` is of the form of
    /// `/proc/self/mountinfo`.
    pub(super) fn or_mounted(self, mounts: &str) -> Self {
        let is_mounted = |path: &Path| mounts.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(path));
        let registry = Path::new(REGISTRY_PATH);
        match is_mounted(registry) && !is_mounted(&self.path) {
            true => Self { path: registry.to_owned(), ..self },
            false => self,
        }
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
    fn what_is_mounted_for_another_registry_is_taken_unless_something_is_mounted_for_us() {
        let mount = |path: &str| format!("36 25 0:31 / {path} rw,relatime - ext4 /dev/sda1 rw\n");
        let (root, theirs, ours) = (mount("/"), mount("/var/lib/registry"), mount("/var/lib/roadstead"));
        for (mounts, expected) in [
            (root.clone(), "/var/lib/roadstead"),
            (format!("{root}{theirs}"), "/var/lib/registry"),
            (format!("{root}{theirs}{ours}"), "/var/lib/roadstead"),
            (mount("/var/lib/registry/more"), "/var/lib/roadstead"),
            (String::new(), "/var/lib/roadstead"),
        ] {
            assert_eq!(StorageConfig::default().or_mounted(&mounts).path, Path::new(expected), "{mounts}");
        }
    }

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
