//! `client-config containerd --write`: files of others survive, no part of a file is ever seen, and `--remove` leaves the
//! folder as it was.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::daemon::Daemon;

const PROGRAM: &str = env!("CARGO_BIN_EXE_roadstead");
const URL: &str = "http://127.0.0.1:5000";
const DEFAULT: &str = "_default/hosts.toml";
const OWN: &str = "127.0.0.1:5000/hosts.toml";
const SAVED: &str = "_default/hosts.toml.roadstead-saved";
const TEMPORARY: &str = "_default/.hosts.toml.roadstead-new";
const FOREIGN: &str = "server = \"https://mirror.example.com\"\n";

/// A folder such as /etc/containerd/certs.d, which does not exist at first.
struct Hosts {
    _parent: TempDir,
    folder: PathBuf,
}

impl Hosts {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("certs.d");
        Self { _parent: parent, folder }
    }

    /// With a file of another program.
    fn with_foreign_file() -> Self {
        let hosts = Self::new();
        hosts.put(DEFAULT, FOREIGN);
        hosts
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(["client-config", "containerd", "--write"]).arg(&self.folder).args(args);
        command.output().expect("the program runs")
    }

    /// The lines that the command prints, without the path of the folder.
    fn ok(&self, args: &[&str]) -> Vec<String> {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let folder = format!("{}/", self.folder.display());
        let mut lines: Vec<String> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line.replace(&folder, "")).collect();
        lines.sort();
        lines
    }

    /// The one line of an error.
    fn error(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{args:?}: {line}");
        line
    }

    fn write(&self) -> Vec<String> {
        self.ok(&["--url", URL])
    }

    fn remove(&self) -> Vec<String> {
        self.ok(&["--remove"])
    }

    /// Every path in the folder, with the content of files.
    fn tree(&self) -> BTreeMap<String, Option<String>> {
        let mut tree = BTreeMap::new();
        walk(&self.folder, &self.folder, &mut tree);
        tree
    }
}

fn walk(root: &Path, folder: &Path, tree: &mut BTreeMap<String, Option<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let is_folder = entry.file_type().unwrap().is_dir();
        tree.insert(name, (!is_folder).then(|| fs::read_to_string(entry.path()).unwrap()));
        if is_folder {
            walk(root, &entry.path(), tree);
        }
    }
}

#[test]
fn written_files_have_the_settings_that_are_printed() {
    let hosts = Hosts::new();
    assert_eq!(hosts.write(), [format!("wrote {OWN}"), format!("wrote {DEFAULT}")]);
    let output = Command::new(PROGRAM).args(["client-config", "containerd", "--url", URL]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let (default, own) = printed.split_once("# For pushes, create ").unwrap();
    let own: String = own.lines().skip(1).map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
    for (path, printed) in [(DEFAULT, default), (OWN, own.as_str())] {
        let written: toml::Table = hosts.read(path).parse().expect("TOML");
        assert_eq!(written, printed.parse().expect("TOML"), "{path}");
    }
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let hosts = Hosts::new();
    let script =
        format!("umask 077; exec {PROGRAM} client-config containerd --url {URL} --write {}", hosts.folder.display());
    assert!(Command::new("sh").args(["-c", &script]).output().unwrap().status.success());
    let mode = |path: &str| fs::metadata(hosts.at(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode(""), mode("_default"), mode(DEFAULT), mode(OWN)], [0o755, 0o755, 0o644, 0o644]);
}

#[test]
fn a_second_write_touches_nothing() {
    let hosts = Hosts::new();
    hosts.write();
    let identity = |path: &str| {
        let found = fs::metadata(hosts.at(path)).unwrap();
        (found.ino(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec())
    };
    let paths = ["", "_default", DEFAULT, "127.0.0.1:5000", OWN];
    let before = paths.map(identity);
    assert_eq!(hosts.write(), [format!("{OWN} is up to date"), format!("{DEFAULT} is up to date")]);
    assert_eq!(paths.map(identity), before);
}

#[test]
fn removal_leaves_only_what_others_wrote() {
    let hosts = Hosts::new();
    hosts.put("quay.io/hosts.toml", FOREIGN);
    hosts.put("_default/ca.crt", "a certificate");
    hosts.put("empty/x", "");
    fs::remove_file(hosts.at("empty/x")).unwrap();
    let before = hosts.tree();
    hosts.write();
    assert_eq!(hosts.tree().len(), before.len() + 3);
    assert_eq!(hosts.remove(), [format!("removed {OWN}"), format!("removed {DEFAULT}")]);
    assert_eq!(hosts.tree(), before);
    assert!(hosts.remove().is_empty(), "a second removal finds nothing");
    let none = Hosts::new();
    assert!(none.remove().is_empty() && !none.folder.exists(), "nor does one without a folder");
}

#[test]
fn a_file_of_others_prevents_every_change() {
    let hosts = Hosts::with_foreign_file();
    let before = hosts.tree();
    let error = hosts.error(&["--url", URL]);
    for part in [hosts.at(DEFAULT).to_str().unwrap(), "was not written by Roadstead", "--force"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(hosts.tree(), before);
    hosts.remove();
    assert_eq!(hosts.tree(), before);
}

#[test]
fn a_replaced_file_is_put_back_by_the_removal() {
    let hosts = Hosts::with_foreign_file();
    let before = hosts.tree();
    let wrote = hosts.ok(&["--url", URL, "--force"]);
    assert!(wrote.contains(&format!("saved the file of another program as {SAVED}")), "{wrote:?}");
    assert_eq!(hosts.read(SAVED), FOREIGN);
    assert!(hosts.read(DEFAULT).contains(URL));
    // A restart of the node's pod.
    hosts.ok(&["--url", URL, "--force"]);
    hosts.ok(&["--url", "http://127.0.0.1:6000", "--force"]);
    assert_eq!(hosts.read(SAVED), FOREIGN);
    assert!(hosts.remove().contains(&format!("restored {DEFAULT}")));
    assert_eq!(hosts.tree(), before);
}

#[test]
fn neither_of_two_foreign_files_is_lost() {
    let hosts = Hosts::with_foreign_file();
    hosts.ok(&["--url", URL, "--force"]);
    hosts.put(DEFAULT, "# a newer file of the other program\n");
    let before = hosts.tree();
    assert!(hosts.error(&["--url", URL, "--force"]).contains("roadstead-saved"));
    assert_eq!(hosts.tree(), before);
    assert!(hosts.remove().iter().any(|line| line.starts_with(&format!("kept {SAVED}"))));
    assert_eq!((hosts.read(SAVED), hosts.read(DEFAULT)), (FOREIGN.to_owned(), before[DEFAULT].clone().unwrap()));
}

#[test]
fn an_interrupted_run_is_completed_by_the_next() {
    let hosts = Hosts::new();
    hosts.put(TEMPORARY, "# Written by");
    hosts.write();
    assert!(!hosts.at(TEMPORARY).exists());
    hosts.put(TEMPORARY, "# Written by");
    hosts.remove();
    assert!(hosts.tree().is_empty(), "{:?}", hosts.tree());
    // Ended between the two renames of --force: the file of others is saved, and there is no other one.
    hosts.put(SAVED, FOREIGN);
    hosts.remove();
    assert_eq!(hosts.read(DEFAULT), FOREIGN);
}

#[test]
fn links_are_neither_followed_nor_replaced() {
    let hosts = Hosts::new();
    let target = hosts.folder.with_file_name("target");
    fs::create_dir_all(hosts.at("_default")).unwrap();
    fs::write(&target, "untouched").unwrap();
    symlink(&target, hosts.at(DEFAULT)).unwrap();
    assert!(hosts.error(&["--url", URL]).contains("was not written by Roadstead"));
    hosts.ok(&["--url", URL, "--force"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    hosts.remove();
    assert_eq!(fs::read_link(hosts.at(DEFAULT)).unwrap(), target, "the link itself is put back");

    let other = hosts.folder.with_file_name("other");
    fs::create_dir(&other).unwrap();
    fs::remove_dir_all(hosts.at("_default")).unwrap();
    symlink(&other, hosts.at("_default")).unwrap();
    assert!(hosts.error(&["--url", URL, "--force"]).contains("symbolic link"));
    // A link in the place of the temporary file, as another user of the folder could make it.
    fs::remove_file(hosts.at("_default")).unwrap();
    fs::create_dir(hosts.at("_default")).unwrap();
    symlink(&target, hosts.at(TEMPORARY)).unwrap();
    hosts.write();
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
}

#[test]
fn an_unusable_folder_is_one_error_line() {
    let hosts = Hosts::new();
    let below = Hosts { folder: hosts.at("a/b"), ..Hosts::new() };
    assert!(below.error(&["--url", URL]).contains("there is no folder"));
    let file = Hosts { folder: hosts.folder.with_file_name("file"), ..Hosts::new() };
    fs::write(&file.folder, "").unwrap();
    assert!(file.error(&["--url", URL]).contains("there is no folder"));
    assert!(file.error(&["--remove"]).contains("there is no folder"));

    // In a mount namespace of its own.
    hosts.put("quay.io/hosts.toml", FOREIGN);
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&hosts.folder);
    command.args([PROGRAM, "client-config", "containerd", "--url", URL, "--write"]).arg(&hosts.folder);
    let output = command.output().expect("unshare, of util-linux, can be started");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(line.contains("_default") && line.contains("Read-only file system"), "{line}");
}

#[test]
fn another_client_than_containerd_is_refused() {
    let hosts = Hosts::new();
    let folder = hosts.folder.to_str().unwrap();
    let output =
        Command::new(PROGRAM).args(["client-config", "podman", "--url", URL, "--write", folder]).output().unwrap();
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && line.contains("--write is for containerd"), "{line}");
    assert!(!hosts.folder.exists());
}

#[test]
fn files_exist_only_until_the_command_is_stopped() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let hosts = Hosts::with_foreign_file();
        let before = hosts.tree();
        let log = tempfile::tempdir().unwrap();
        let folder = hosts.folder.to_str().unwrap();
        let args = ["client-config", "containerd", "--url", URL, "--write", folder, "--force", "--until-stopped"];
        let mut running = Daemon::spawn("hosts", log.path(), Path::new(PROGRAM), &args);
        running.wait_until(|| hosts.at(OWN).exists());
        assert!(hosts.read(DEFAULT).contains(URL));
        // The files of another server stay. It waits for the lock if need be.
        hosts.ok(&["--url", "http://127.0.0.1:6000"]);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid().cast_signed()), signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while running.exited().is_none() && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
        }
        assert!(running.exited().is_some_and(|status| status.success()), "{}", running.log());
        assert!(!hosts.at(OWN).exists() && hosts.read(DEFAULT).contains("127.0.0.1:6000"), "{}", running.log());
        hosts.remove();
        assert_eq!(hosts.tree(), before);
    }
}
