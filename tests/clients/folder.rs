//! The folder of one daemon or client. When dropped, it leaves no process, mount or file.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Declare it after the daemons that use it: fields are dropped in order.
pub struct Folder(TempDir);

impl Folder {
    /// In `/tmp` despite `TMPDIR`, because the path of a socket is limited to 107 bytes.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("roadstead-").tempdir_in("/tmp");
        Self(folder.expect("a folder in /tmp"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of an entry as text, for command lines.
    pub fn at(&self, entry: &str) -> String {
        let path = self.path().join(entry);
        path.to_str().expect("a plain path").to_owned()
    }

    pub fn write(&self, entry: &str, text: &str) -> PathBuf {
        let path = self.path().join(entry);
        let parent = path.parent().expect("an entry has a parent");
        fs::create_dir_all(parent).expect("the folder can be created");
        fs::write(&path, text).expect("the file can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        kill_processes_naming(self.path());
        for mount in mounts_under(self.path()) {
            let unmounted = Command::new("umount").arg("--lazy").arg(&mount).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("{} is left mounted", mount.display());
            }
        }
    }
}

/// Kills shims and other processes that left the process group of their daemon. Only processes of this test have the
/// folder in their command lines.
fn kill_processes_naming(folder: &Path) {
    let name = folder.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.windows(name.len()).any(|part| part == name) {
            // An error means that the process has just ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Mounts in the order of unmounting: the latest first.
fn mounts_under(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    points.reverse();
    points
}

#[test]
fn a_dropped_folder_leaves_no_process_mount_or_file() {
    let folder = Folder::new();
    let path = folder.path().to_owned();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&path).status().unwrap();
    assert!(mounted.success(), "these tests need root");
    let file = folder.write("busy", "up and running\n");
    let mut busy = Command::new("tail").arg("-f").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
    busy.stdout.as_mut().unwrap().read_exact(&mut [0; 14]).unwrap();
    drop(folder);
    assert!(!busy.wait().unwrap().success(), "killed");
    assert!(mounts_under(&path).is_empty());
    assert!(!path.exists());
}
