//! `[storage]`: the data folder.

use std::path::{Path, PathBuf};

/// The default data folder of a system service.
const SYSTEM_PATH: &str = "/var/lib/roadstead";

/// The volume of the `registry:2` image. A volume mounted there is meant as the data folder.
const REGISTRY_PATH: &str = "/var/lib/registry";

/// `[storage]`
#[derive(Clone, Debug, PartialEq)]
pub struct StorageConfig {
    /// The data folder.
    pub path: PathBuf,
    /// Whether the folder is never written. Pushes and deletes are refused then, and content that is not cached is
    /// fetched as a bypass.
    pub read_only: bool,
}

// === impl StorageConfig ===

impl StorageConfig {
    /// The default data folder: `/var/lib/roadstead` for root, otherwise below `XDG_DATA_HOME` or `HOME`.
    pub(super) fn of_user(root: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        // The XDG specification requires that relative paths are ignored.
        let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
        let path = match root {
            true => None,
            false => home().map(|data| data.join("roadstead")),
        };
        Self { path: path.unwrap_or_else(|| Path::new(SYSTEM_PATH).to_owned()), read_only: false }
    }

    /// Replaces the path by `/var/lib/registry` if that is a mount point and the path is not. `mounts` has the format
    /// of `/proc/self/mountinfo`.
    pub(super) fn or_mounted(self, mounts: &str) -> Self {
        let registry = Path::new(REGISTRY_PATH);
        match is_mounted(registry, mounts) && !is_mounted(&self.path, mounts) {
            true => Self { path: registry.to_owned(), ..self },
            false => self,
        }
    }

    /// The default data folder in the container image: `/var/lib/registry`, or `/var/lib/roadstead` if that is a mount
    /// point, because only a person mounts something there. `mounts` has the format of `/proc/self/mountinfo`.
    pub(super) fn of_image(mounts: &str) -> Self {
        let path = match is_mounted(Path::new(SYSTEM_PATH), mounts) {
            true => SYSTEM_PATH,
            false => REGISTRY_PATH,
        };
        Self { path: path.into(), read_only: false }
    }
}

fn is_mounted(path: &Path, mounts: &str) -> bool {
    mounts.lines().any(|line| line.split(' ').nth(4).map(Path::new) == Some(path))
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
    fn registry_volume_is_used_unless_ours_is_mounted() {
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
    fn default_data_folder_depends_on_the_user() {
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
