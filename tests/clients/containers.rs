//! What podman and buildah read, so that neither touches the machine's storage, locks or networks.

use std::path::Path;

use super::folder::Folder;
use super::program::run;

/// By themselves they ask for a million files and processes, which a sandboxed machine may not have
/// to give; and there may be no service manager to ask for a cgroup.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"#;

/// A folder with its own storage, by a driver that needs nothing of the kernel.
pub fn folder(registries_conf: &str) -> Folder {
    let folder = Folder::new();
    let at = |entry| folder.at(entry);
    let own = format!("tmp_dir = {:?}\n[network]\nnetwork_config_dir = {:?}\n", at("tmp"), at("network"));
    folder.write("containers.conf", &format!("{CONTAINERS_CONF}{own}"));
    let storage = format!("driver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n", at("storage"), at("run"));
    folder.write("storage.conf", &format!("[storage]\n{storage}"));
    folder.write("registries.conf", registries_conf);
    folder
}

/// Runs the program with what is in the folder.
pub fn run_in(folder: &Folder, program: &Path, args: &[&str]) -> String {
    let environment = [
        ("CONTAINERS_CONF", folder.at("containers.conf")),
        ("CONTAINERS_REGISTRIES_CONF", folder.at("registries.conf")),
        ("CONTAINERS_STORAGE_CONF", folder.at("storage.conf")),
        ("HOME", folder.at("")),
    ];
    run(program, args, &environment.each_ref().map(|(name, value)| (*name, value.as_str())))
}
