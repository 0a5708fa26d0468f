//! A runnable image: busybox and a small file that identifies the test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::folder::Folder;
use super::program::{find, run};
use crate::support::image::{Content, Image, Index, OCI_LAYER, digest_of, random_bytes};

/// An image for this machine. `cat /etc/greeting` prints the greeting.
pub fn image(greeting: &str) -> Image {
    let folder = Folder::new();
    lay_out_busybox(&folder.path().join("busybox"));
    let busybox = pack(&folder, "busybox");
    build(&this_platform(), vec![busybox, pack_greeting(&folder, greeting)])
}

/// The same with additional layers of these numbers of incompressible bytes.
pub fn image_with_ballast(greeting: &str, sizes: &[usize]) -> Image {
    let folder = Folder::new();
    lay_out_busybox(&folder.path().join("busybox"));
    let mut layers = vec![pack(&folder, "busybox"), pack_greeting(&folder, greeting)];
    for (size, n) in sizes.iter().zip(1..) {
        let layer = format!("ballast-{n}");
        fs::create_dir_all(folder.path().join(&layer)).expect("a folder for the layer");
        fs::write(folder.path().join(&layer).join(&layer), random_bytes(n, *size)).expect("the file can be written");
        layers.push(pack(&folder, &layer));
    }
    build(&this_platform(), layers)
}

/// An index of an image for this platform and two empty ones for other platforms. Their layers are compressed, because
/// skopeo would compress uncompressed ones.
pub fn index(greeting: &str) -> Index {
    let others = ["linux/s390x", "linux/riscv64"].map(|platform| {
        let layer = pack_greeting(&Folder::new(), &format!("{greeting} on {platform}"));
        build(platform, vec![layer])
    });
    Index::of([vec![image(greeting)], others.to_vec()].concat())
}

fn build(platform: &str, layers: Vec<(Content, String)>) -> Image {
    let (layers, diff_ids): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    Image::with_diff_ids(platform, layers, &diff_ids)
}

fn pack_greeting(folder: &Folder, greeting: &str) -> (Content, String) {
    folder.write("greeting/etc/greeting", greeting);
    pack(folder, "greeting")
}

/// A plain tar of the complete root file system inside the folder, for `docker import`.
pub fn root_tar(folder: &Folder, greeting: &str) -> String {
    lay_out_busybox(&folder.path().join("root"));
    folder.write("root/etc/greeting", greeting);
    tar(folder, "root")
}

fn lay_out_busybox(root: &Path) {
    let busybox = find("busybox", "busybox-static");
    let bin = root.join("bin");
    fs::create_dir_all(&bin).expect("a folder for the programs");
    fs::copy(busybox, bin.join("busybox")).expect("a copy of busybox");
    for name in ["sh", "cat"] {
        symlink("busybox", bin.join(name)).expect("a link to busybox");
    }
}

/// The compressed layer of that folder, and the digest of the uncompressed one.
fn pack(folder: &Folder, layer: &str) -> (Content, String) {
    let tar = tar(folder, layer);
    let diff_id = digest_of(&fs::read(&tar).expect("the tar"));
    run(Path::new("gzip"), &["-1", "--no-name", &tar], &[]);
    let packed = fs::read(format!("{tar}.gz")).expect("the packed tar");
    (Content::new(OCI_LAYER, packed), diff_id)
}

fn tar(folder: &Folder, layer: &str) -> String {
    let (root, tar) = (folder.at(layer), folder.at(&format!("{layer}.tar")));
    let same_for_all = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
    let mut args = same_for_all.to_vec();
    args.extend(["-C", &root, "-cf", &tar, "."]);
    run(Path::new("tar"), &args, &[]);
    tar
}

/// This platform as in image configs.
fn this_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}
