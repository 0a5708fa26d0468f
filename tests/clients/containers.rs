//! Configuration that keeps podman and buildah away from the machine's storage, locks and networks.

use std::path::Path;

use super::folder::Folder;
use super::program::run;

/// The default limits of a million files and processes may exceed those of a sandboxed machine, which may also lack a
/// service manager for cgroups.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"#;

/// A folder with its own storage, whose driver needs no kernel support.
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

/// Runs the program with the configuration in the folder.
pub fn run_in(folder: &Folder, program: &Path, args: &[&str]) -> String {
    let environment = [
        ("CONTAINERS_CONF", folder.at("containers.conf")),
        ("CONTAINERS_REGISTRIES_CONF", folder.at("registries.conf")),
        ("CONTAINERS_STORAGE_CONF", folder.at("storage.conf")),
        ("HOME", folder.at("")),
    ];
    run(program, args, &environment.each_ref().map(|(name, value)| (*name, value.as_str())))
}
