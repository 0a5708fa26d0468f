//! The prefetch window: how many bytes after the first missing one may be received before a client requests them.
//! They must stay in the page cache until they are hashed. The page cache counts towards the memory limit of a
//! container.

use std::fs;
use std::path::Path;

/// Largest window in bytes.
const MAX_WINDOW_BYTES: u64 = 256 << 20;
/// The window is at most this fraction of the memory.
const MEMORY_PER_WINDOW: u64 = 4;

/// The window in bytes. Reads small files of the kernel.
pub(in crate::pull) fn window() -> u64 {
    let total = read(Path::new("/proc/meminfo")).as_deref().and_then(total_memory);
    let limits = read(Path::new("/proc/self/cgroup")).map(|groups| memory_limits(&groups, Path::new("/sys/fs/cgroup")));
    of_memory(limits.into_iter().flatten().chain(total).min())
}

fn of_memory(bytes: Option<u64>) -> u64 {
    bytes.map_or(MAX_WINDOW_BYTES, |bytes| (bytes / MEMORY_PER_WINDOW).min(MAX_WINDOW_BYTES))
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The memory limits of the process's control groups, of version 1 or 2, and of the groups above them, in bytes. In a
/// container the names in `groups` may be those of the host; the limit is then that of the mounted root.
fn memory_limits(groups: &str, mount: &Path) -> Vec<u64> {
    let mut limits = Vec::new();
    for group in groups.lines() {
        // 0::/system.slice/roadstead.service, or 9:memory:/docker/1234
        let mut fields = group.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            controllers if controllers.split(',').any(|controller| controller == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = root.join(path.trim_start_matches('/'));
        let above = group.ancestors().take_while(|folder| folder.starts_with(&root));
        limits.extend(above.filter_map(|folder| read(&folder.join(file))?.trim().parse::<u64>().ok()));
    }
    limits
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_window_is_a_quarter_of_the_memory_with_a_maximum() {
        for (memory, window) in [(Some(64 * MIB), 16 * MIB), (Some(64 << 30), 256 * MIB), (None, 256 * MIB)] {
            assert_eq!(of_memory(memory), window, "{memory:?}");
        }
        assert!(window() > 0);
        assert_eq!(total_memory("MemTotal:       24684084 kB\nMemFree: 1 kB\n"), Some(24_684_084 * 1024));
    }

    #[test]
    fn limits_of_all_groups_above_count() {
        let mount = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("memory.max", "max\n");
        write("a/memory.max", "1000\n");
        write("a/b/memory.max", "2000\n");
        write("memory/docker/memory.limit_in_bytes", "3000\n");
        for (groups, limits) in [
            ("0::/a/b\n", vec![2000, 1000]),
            ("0::/\n", vec![]),
            ("0::/of/the/host\n", vec![]),
            ("9:cpu,memory:/docker\n1:name=systemd:/x\n", vec![3000]),
            ("nonsense", vec![]),
        ] {
            assert_eq!(memory_limits(groups, mount.path()), limits, "{groups:?}");
        }
    }
}
