//! buildkit builds on a mirrored image, and pushes the result with attestations and its cache.

use std::path::Path;

use super::programs::commands_of;
use super::scene::{json, mirrored};
use crate::clients::busybox;
use crate::clients::folder::Folder;
use crate::clients::login::{PASSWORD, with_users};
use crate::clients::program::{MachineLock, NO_INTERNET, find, run};
use crate::clients::readme::generated;
use crate::support::Client;
use crate::support::daemon::Daemon;
use crate::support::process::ServerProcess;

struct Buildkit {
    _daemon: Daemon,
    folder: Folder,
}

impl Buildkit {
    /// Starts buildkitd with the output of `client-config`.
    fn start(roadstead: &ServerProcess) -> Self {
        let folder = Folder::new();
        folder.write("buildkitd.toml", &generated("buildkit", &roadstead.url("")));
        let socket = format!("unix://{}", folder.at("sock"));
        let runc = find("runc", "runc");
        let args = [
            ["--config", &folder.at("buildkitd.toml")],
            ["--root", &folder.at("root")],
            ["--addr", &socket],
            ["--containerd-worker", "false"],
            ["--oci-worker", "true"],
            ["--oci-worker-binary", runc.to_str().expect("a plain path")],
            ["--oci-worker-snapshotter", "native"],
            ["--oci-worker-net", "host"],
        ]
        .map(|[name, value]| format!("{name}={value}"));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let program = commands_of("buildkit").join("buildkitd");
        let mut daemon = Daemon::spawn_with("buildkitd", folder.path(), &program, &args, &NO_INTERNET);
        let socket = folder.at("sock");
        daemon.wait_until(|| Path::new(&socket).exists());
        Self { _daemon: daemon, folder }
    }

    /// Builds this Dockerfile, and returns the log.
    fn build(&self, dockerfile: &str, options: &[&str]) -> String {
        self.folder.write("context/Dockerfile", dockerfile);
        let (address, context) = (format!("unix://{}", self.folder.at("sock")), self.folder.at("context"));
        let (context, file) = (format!("context={context}"), format!("dockerfile={context}"));
        let build = ["--addr", &address, "build", "--frontend", "dockerfile.v0", "--progress", "plain"];
        let buildctl = commands_of("buildkit").join("buildctl");
        let args = [&["-c", "exec \"$0\" \"$@\" 2>&1", buildctl.to_str().expect("a plain path")], &build[..]].concat();
        let local = ["--local", &context, "--local", &file];
        run(Path::new("sh"), &[&args[..], &local, options].concat(), &[("HOME", &self.folder.at(""))])
    }
}

const DOCKERFILE: &str = "FROM team/base:v1\nRUN echo built >/built\nRUN cat /built /etc/greeting >/both\n";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn buildkit_builds_pushes_and_imports_its_cache() {
    let (upstream, roadstead) = mirrored().await;
    upstream.add_index("team/base", "v1", &busybox::index("the base"));
    let host = roadstead.host();
    let push = format!("type=image,name={host}/team/built:v1,push=true");
    let cache = format!("type=registry,ref={host}/team/cache:v1");
    let (export, import) = (format!("{cache},mode=max"), ["--import-cache", cache.as_str()]);
    let _lock = MachineLock::take("daemon");
    let first = Buildkit::start(&roadstead);
    first.build(DOCKERFILE, &["--output", &push, "--export-cache", &export]);
    assert!(upstream.total() > 0);
    drop(first);

    upstream.forget();
    let second = Buildkit::start(&roadstead);
    let out = format!("type=local,dest={}", second.folder.at("out"));
    let log = second.build(DOCKERFILE, &[&["--output", &out], &import[..]].concat());
    let cached = log.lines().filter(|line| line.ends_with(" CACHED")).count();
    // The last step is fetched from the cache, and buildkit does not call that cached.
    assert!(cached >= 1, "no command comes from the cache: {log}");
    assert_eq!(std::fs::read_to_string(second.folder.at("out/both")).unwrap(), "built\nthe base");
    assert_eq!(upstream.total(), 0, "the base comes from the cache of Roadstead");
    // The image that was pushed is a base, too.
    let again = format!("FROM {host}/team/built:v1\nRUN cat /both >/again\n");
    second.build(&again, &["--output", &out]);
    assert_eq!(std::fs::read_to_string(second.folder.at("out/again")).unwrap(), "built\nthe base");
}

/// A scanner that writes a list of nothing where buildkit expects lists of what the image contains.
const SCANNER: &str = r#"FROM team/base:v1
RUN printf '%s\n' '#!/bin/sh' \
  'echo "{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"spdxVersion\":\"SPDX-2.3\",\"SPDXID\":\"SPDXRef-DOCUMENT\",\"name\":\"none\",\"packages\":[]}}" >$BUILDKIT_SCAN_DESTINATION/none.spdx.json' \
  >/bin/scan && /bin/busybox chmod 755 /bin/scan
ENTRYPOINT ["/bin/scan"]
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn buildkit_pushes_provenance_and_a_list_of_materials() {
    let (upstream, roadstead) = mirrored().await;
    upstream.add_index("team/base", "v1", &busybox::index("the base"));
    let host = roadstead.host();
    let push = |name: &str| format!("type=image,name={host}/team/{name}:v1,push=true");
    let _lock = MachineLock::take("daemon");
    let buildkit = Buildkit::start(&roadstead);
    buildkit.build(SCANNER, &["--output", &push("scanner")]);
    let sbom = format!("attest:sbom=generator={host}/team/scanner:v1");
    let attest = ["--opt", "attest:provenance=mode=max", "--opt", &sbom];
    buildkit.build(DOCKERFILE, &[&["--output", &push("attested")], &attest[..]].concat());

    let get = async |path: &str| {
        let answer = Client::new().get(&roadstead.url(&format!("/v2/team/attested/{path}"))).await;
        json(answer.text())
    };
    let index = get("manifests/v1").await;
    let attestation = &index["manifests"][1];
    assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], index["manifests"][0]["digest"]);
    let manifest = get(&format!("manifests/{}", attestation["digest"].as_str().unwrap())).await;
    let mut kinds = Vec::new();
    for layer in manifest["layers"].as_array().unwrap() {
        let statement = get(&format!("blobs/{}", layer["digest"].as_str().unwrap())).await;
        kinds.push(statement["predicateType"].as_str().unwrap().to_owned());
    }
    kinds.sort();
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    assert!(kinds[0].contains("slsa") && kinds[1].contains("spdx"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs `make clients`"]
async fn buildkit_pushes_with_the_login_of_its_user() {
    let folder = Folder::new();
    let server = with_users(&folder);
    let _lock = MachineLock::take("daemon");
    let buildkit = Buildkit::start(&server);
    buildkit.folder.write("context/hello", "hello\n");
    let push = format!("type=image,name={}/team/built:v1,push=true", server.host());
    let login = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("ann:{PASSWORD}"));
    buildkit
        .folder
        .write(".docker/config.json", &format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{login}\"}}}}}}", server.host()));
    buildkit.build("FROM scratch\nCOPY hello /\n", &["--output", &push]);
    let answer = Client::new().get(&server.url("/v2/team/built/manifests/v1")).await;
    assert_eq!(answer.status, 200);
}
