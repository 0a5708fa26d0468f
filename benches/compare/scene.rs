//! All servers of the measurement, running with the same content.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::servers::{Program, mirror_of_files, roadstead, roadstead_with, segmented};
use super::subject::Subject;
use super::support::client::{ACCEPT, Conn};
use super::support::stage::MIB;
use super::support::tests::authority::Authority;
use super::support::tests::process::ServerProcess;
use super::support::tests::{Client, Content, Image, Upstream, random_bytes};

/// The number of repositories in the catalogue, of tags in one repository, and of additional blobs.
pub const PAGED_ENTRIES: usize = 10_000;
/// The repository with this many tags.
pub const TAGGED: &str = "pages/tagged";
/// Small images that are cold in a round.
pub const SMALL_IMAGES: usize = 1000;
/// Files from this size on may be in the page cache as folios of more than a page.
const LARGE_FILE_BYTES: u64 = 64 << 10;
const INDEX_TIMEOUT: Duration = Duration::from_secs(120);
/// The servers that have all content.
const READ: [Subject; 4] = [Subject::Nginx, Subject::Registry, Subject::Pushed, Subject::Mirrored];

pub struct Scene {
    pub nginx: Program,
    pub registry: Program,
    pub proxy: Program,
    pub roadstead: ServerProcess,
    /// A cache of the static files of `nginx`, as Roadstead is.
    pub nginx_cache: Program,
    pub roadstead_tls: ServerProcess,
    pub authority: Authority,
    /// The targets of pushes in one round: an empty docker-registry and an empty Roadstead, which also mirrors.
    pub fresh: Option<(u64, Program, ServerProcess)>,
    /// The cold blob of one round, by case.
    pub cold: Option<(String, u64, Content)>,
    /// The file of `nginx` that is cold in one round, by case.
    pub unpaced: Option<(String, u64, Content)>,
    /// The small images of one round.
    pub small: Option<(u64, Vec<Image>)>,
    pub upstream: Upstream,
    /// An image of eight layers of 8 MiB.
    pub image: Image,
    /// An image whose layers are the measured blobs: 4 KiB, 1 MiB, 100 MiB.
    pub blobs: Image,
    /// An image of one layer of 100 MiB, which stays in the page cache as it was written.
    pub written: Image,
    pub runtime: Runtime,
    folder: TempDir,
}

impl Scene {
    /// Starts and fills all servers.
    pub fn new(folder: TempDir) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let upstream = runtime.block_on(Upstream::start());
        let at = |name: &str| folder.path().join(name);
        let authority = Authority::new();
        let nginx = Program::nginx(&at("nginx"), &authority);
        let files = mirror_of_files(nginx.address());
        let secure = files.clone() + &authority.config("roadstead");
        let mut scene = Self {
            nginx_cache: Program::nginx_cache(&at("nginx-cache"), nginx.address()),
            roadstead_tls: roadstead_with(&at("roadstead-tls"), &upstream.url(""), &secure),
            authority,
            registry: Program::registry(&at("registry")),
            proxy: Program::proxy(&at("proxy"), &upstream.url("")),
            roadstead: roadstead_with(&at("roadstead"), &upstream.url(""), &(files + &segmented(&upstream.url("")))),
            nginx,
            fresh: None,
            cold: None,
            unpaced: None,
            small: None,
            upstream,
            image: Image::new(1, &[8 * MIB; 8]),
            blobs: Image::new(100, &[4 << 10, MIB, 100 * MIB]),
            written: Image::new(101, &[100 * MIB]),
            runtime,
            folder,
        };
        for (tag, image) in scene.images() {
            scene.upstream.add_image(Subject::Mirrored.repository(), tag, image);
        }
        scene.stock(&scene.images());
        scene.multiply();
        scene.warm(&READ, &scene.images());
        // The page cache keeps folios of the size in which a file was written, which affects the cost of each byte. To treat
        // all servers alike, the files are read from disk again, as after a boot.
        forget(scene.folder()).expect("the folder can be read");
        scene.warm(&READ, &scene.images());
        let written = [("v3", &scene.written)];
        scene.stock(&written);
        scene.warm(&[Subject::Nginx, Subject::Registry, Subject::Pushed], &written);
        scene.warm_tls(&scene.images());
        scene
    }

    pub fn address(&self, subject: Subject) -> SocketAddr {
        match subject {
            Subject::Nginx => self.nginx.address(),
            Subject::Registry => self.registry.address(),
            Subject::Pushed | Subject::Mirrored | Subject::Segmented => ([127, 0, 0, 1], self.roadstead.port()).into(),
            Subject::Upstream => self.upstream.addr(),
            Subject::Proxy => self.proxy.address(),
            Subject::NginxCache => self.nginx_cache.address(),
            Subject::NginxTls => self.nginx.tls_address(),
            Subject::MirroredTls => ([127, 0, 0, 1], self.roadstead_tls.port()).into(),
        }
    }

    /// The processes whose CPU time and memory count for the subject. There is none for the upstream, which is this process.
    pub fn pids(&self, subject: Subject) -> Vec<u32> {
        match subject {
            Subject::Nginx | Subject::NginxTls => self.nginx.pids(),
            Subject::NginxCache => self.nginx_cache.pids(),
            Subject::MirroredTls => self.roadstead_tls.pid().into_iter().collect(),
            Subject::Registry => self.registry.pids(),
            Subject::Pushed | Subject::Mirrored | Subject::Segmented => self.roadstead.pid().into_iter().collect(),
            Subject::Upstream => Vec::new(),
            Subject::Proxy => self.proxy.pids(),
        }
    }

    /// The servers for the pushes of a round. Those of the previous round are removed, with their gigabytes.
    pub fn fresh(&mut self, round: u64) -> &(u64, Program, ServerProcess) {
        if self.fresh.as_ref().is_some_and(|(of, ..)| *of != round) {
            drop(self.fresh.take());
            fs::remove_dir_all(self.folder.path().join("fresh")).expect("the folder is no longer in use");
        }
        let (folder, upstream) = (self.folder.path().join("fresh"), self.upstream.url(""));
        self.fresh.get_or_insert_with(|| {
            (round, Program::registry(&folder.join("registry")), roadstead(&folder.join("roadstead"), &upstream))
        })
    }

    /// A blob of this size that is cold in this round, in a repository that each cache knows.
    pub fn cold(&mut self, case: &str, round: u64, bytes: usize) -> (String, Content) {
        let repository = format!("library/cold-{bytes}");
        if self.cold.as_ref().is_none_or(|(of, at, _)| of != case || *at != round) {
            let seed = case.bytes().fold(round, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
            let image = Image::new(seed, &[bytes]);
            self.upstream.end_scripts();
            self.upstream.remove_repository(&repository);
            self.upstream.add_image(&repository, &format!("r{seed}"), &image);
            let manifest = format!("/v2/{repository}/manifests/r{seed}");
            for cache in [Subject::Mirrored, Subject::Proxy] {
                let got = Conn::open(self.address(cache)).get(&manifest, &image.manifest.bytes);
                assert!(got.correct, "{} has the manifest", cache.name());
            }
            self.cold = Some((case.to_owned(), round, image.layers[0].clone()));
        }
        let (_, _, blob) = self.cold.as_ref().expect("it was set above");
        (format!("/v2/{repository}/blobs/{}", blob.digest), blob.clone())
    }

    /// A blob of this size that `nginx` serves since this round, with its path there. The one of an earlier round is
    /// removed.
    pub fn unpaced(&mut self, case: &str, round: u64, bytes: usize) -> (String, Content) {
        let path = |blob: &Content| format!("/v2/library/unpaced/blobs/{}", blob.digest);
        let files = self.nginx.folder().join("files");
        let file = |blob: &Content| files.join(path(blob).trim_start_matches('/'));
        if self.unpaced.as_ref().is_none_or(|(of, at, _)| of != case || *at != round) {
            if let Some((_, _, earlier)) = self.unpaced.take() {
                fs::remove_file(file(&earlier)).expect("it was written below");
            }
            let seed = case.bytes().fold(round, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
            let blob = Content::new("application/octet-stream", random_bytes(seed, bytes));
            fs::create_dir_all(file(&blob).parent().expect("a file is in a folder"))
                .expect("the folder can be written");
            fs::write(file(&blob), &blob.bytes).expect("the folder can be written");
            self.sync();
            self.unpaced = Some((case.to_owned(), round, blob));
        }
        let (_, _, blob) = self.unpaced.as_ref().expect("it was set above");
        (path(blob), blob.clone())
    }

    /// Images of a manifest, a config and five layers of 4 KiB that the upstream has since this round, each in a
    /// repository of [`small_repository`].
    pub fn small_images(&mut self, round: u64) -> &[Image] {
        if self.small.as_ref().is_none_or(|(of, _)| *of != round) {
            self.upstream.end_scripts();
            let earlier = self.small.take().map_or(0, |(_, images)| images.len());
            (0..earlier).for_each(|n| self.upstream.remove_repository(&small_repository(n)));
            let seed = |n: usize| 1_000_000 + round * 1_000_000 + n as u64 * 10;
            let images: Vec<Image> = (0..SMALL_IMAGES).map(|n| Image::new(seed(n), &[4 << 10; 5])).collect();
            for (n, image) in images.iter().enumerate() {
                self.upstream.add_image(&small_repository(n), &format!("r{round}"), image);
            }
            self.small = Some((round, images));
        }
        &self.small.as_ref().expect("it was set above").1
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The images that are also mirrored.
    fn images(&self) -> [(&'static str, &Image); 2] {
        [("v1", &self.image), ("v2", &self.blobs)]
    }

    fn stock(&self, images: &[(&str, &Image)]) {
        for (path, content) in content(Subject::Nginx, images) {
            let file = self.nginx.folder().join("files").join(path.trim_start_matches('/'));
            fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("the folder can be written");
            fs::write(file, &content.bytes).expect("the folder can be written");
        }
        for subject in [Subject::Registry, Subject::Pushed] {
            images.iter().for_each(|(tag, image)| self.push(subject, subject.repository(), tag, image));
        }
    }

    fn push(&self, subject: Subject, repository: &str, tag: &str, image: &Image) {
        let base = format!("http://{}", self.address(subject));
        self.runtime.block_on(Client::new().push_image(&base, repository, tag, image));
    }

    /// Multiplies one repository, one tag and one blob, by copying the files that the servers have written.
    fn multiply(&mut self) {
        let small = Image::new(7, &[4 << 10]);
        for subject in [Subject::Registry, Subject::Pushed] {
            self.push(subject, TAGGED, "t00000", &small);
        }
        let registry = self.registry.folder().join("docker/registry/v2");
        // A symbolic link to the same folder is enough for docker-registry.
        multiply(&registry.join("repositories"), "_manifests/tags", &|from, to| symlink(from, to));
        self.registry.restart();

        self.roadstead.stop();
        let data = self.roadstead.data_dir();
        multiply(&data.join("repositories/local"), "_tags", &copy);
        for (hex, bytes) in small_blobs() {
            fs::write(data.join("blobs/sha256").join(&hex[..2]).join(&hex), bytes).expect("the folder can be written");
        }
        // The index is rebuilt from the files.
        fs::remove_dir_all(data.join("index")).expect("the server had an index");
        self.restart_roadstead();
    }

    /// Restarts Roadstead and waits until its index is in step with the files.
    pub fn restart_roadstead(&mut self) {
        self.roadstead.stop();
        self.roadstead.begin();
        let deadline = Instant::now() + INDEX_TIMEOUT;
        while self.runtime.block_on(self.roadstead.metric("roadstead_index_ready", &[])) != 1.0 {
            assert!(Instant::now() < deadline, "the index is not ready");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads all content of these images three times and checks it.
    fn warm(&self, subjects: &[Subject], images: &[(&str, &Image)]) {
        for &subject in subjects {
            let mut conn = Conn::open(self.address(subject));
            let content = content(subject, images);
            for (path, content) in std::iter::repeat_n(&content, 3).flatten() {
                assert!(conn.get(path, &content.bytes).correct, "{} has {path}", subject.name());
            }
        }
        self.sync();
    }

    /// The same for Roadstead's HTTPS, once.
    fn warm_tls(&self, images: &[(&str, &Image)]) {
        let (client, base) = (Client::trusting(&self.authority.ca, None), self.address(Subject::MirroredTls));
        for (path, content) in content(Subject::MirroredTls, images) {
            let url = format!("https://{base}{path}");
            let answer = self.runtime.block_on(client.get_with(&url, &[("Accept", ACCEPT)]));
            assert!(answer.body == content.bytes, "{url} is mirrored");
        }
        self.sync();
    }

    /// No dirty pages may be written back during a measurement.
    fn sync(&self) {
        File::open(self.folder())
            .and_then(|folder| Ok(rustix::fs::syncfs(&folder)?))
            .expect("the file system can be synced");
    }
}

/// Path and bytes of all content of these images.
fn content<'a>(subject: Subject, images: &[(&str, &'a Image)]) -> Vec<(String, &'a Content)> {
    let repository = subject.repository();
    let mut content = Vec::new();
    for (tag, image) in images {
        for reference in [tag, image.digest()] {
            content.push((format!("/v2/{repository}/manifests/{reference}"), &image.manifest));
        }
        for blob in image.blobs() {
            content.push((format!("/v2/{repository}/blobs/{}", blob.digest), blob));
        }
    }
    content
}

/// Drops the files below a folder, which are synced, from the page cache.
fn forget(folder: &Path) -> io::Result<()> {
    fs::read_dir(folder)?.try_for_each(|entry| {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => forget(&entry.path()),
            kind if kind.is_file() && entry.metadata()?.len() >= LARGE_FILE_BYTES => {
                Ok(fadvise(File::open(entry.path())?, 0, None, Advice::DontNeed)?)
            }
            _ => Ok(()),
        }
    })
}

/// `pages/r00000` and so on of `pages/tagged`, and then tags `t00001` and so on of its `t00000`.
fn multiply(repositories: &Path, tags: &str, copy: &dyn Fn(&Path, &Path) -> io::Result<()>) {
    let again = |from: &Path, to: &Path| copy(from, to).expect("the folder can be written");
    let tagged = repositories.join(TAGGED);
    for n in 0..PAGED_ENTRIES - 1 {
        again(&tagged, &repositories.join(format!("pages/r{n:05}")));
    }
    let tags = tagged.join(tags);
    for n in 1..PAGED_ENTRIES {
        again(&tags.join("t00000"), &tags.join(format!("t{n:05}")));
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_file() {
        return fs::hard_link(from, to);
    }
    fs::create_dir(to)?;
    fs::read_dir(from)?.try_for_each(|entry| {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))
    })
}

/// The repository of the small image with this number.
pub fn small_repository(n: usize) -> String {
    format!("library/small-{n:04}")
}

/// Small blobs with their digests.
fn small_blobs() -> impl Iterator<Item = (String, [u8; 8])> {
    (0..PAGED_ENTRIES as u64).map(|n| {
        let bytes = n.to_be_bytes();
        (Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect(), bytes)
    })
}
