//! The client settings in the README. The client tests run with exactly these.

/// The first block of this language below this heading, with `HOST:5000` replaced by our host.
pub fn recipe(heading: &str, language: &str, host: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading} in README"));
    let (_, block) = section.split_once(&format!("\n```{language}\n")).expect("the section has such a block");
    let (block, _) = block.split_once("\n```").expect("a block ends");
    assert!(block.contains("HOST:5000"), "the block under {heading} does not contain HOST:5000");
    block.replace("HOST:5000", host)
}

/// The output of `roadstead client-config` for this client and server URL.
pub fn generated(client: &str, url: &str) -> String {
    generated_with(client, url, &[])
}

fn generated_with(client: &str, url: &str, options: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(["client-config", client, "--url", url])
        .args(options)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a text")
}

#[test]
fn readme_recipes_match_client_config() {
    for (heading, language, client) in [
        ("### Docker", "json", "docker"),
        ("### k3s and k3d", "yaml", "k3s"),
        ("### k3s and k3d", "yaml", "k3d"),
        ("### podman, buildah, skopeo, CRI-O", "toml", "podman"),
    ] {
        let printed = generated(client, "http://HOST:5000");
        let recipe = recipe(heading, language, "HOST:5000");
        assert!(printed.contains(&recipe), "client-config {client} prints\n{printed}\nbut the README has\n{recipe}");
    }
}

#[test]
fn deploy_snippets_match_client_config() {
    for (path, client) in [
        ("docker/daemon.json", "docker"),
        ("containerd/_default/hosts.toml", "containerd"),
        ("k3s/registries.yaml", "k3s"),
        ("k3d/registries.yaml", "k3d"),
        ("kind/roadstead.sh", "kind"),
        ("podman/roadstead.conf", "podman"),
        ("buildkit/buildkitd.toml", "buildkit"),
    ] {
        let url = match client {
            "k3d" => "http://host.k3d.internal:5000",
            "kind" => "http://roadstead:5000",
            _ => "http://127.0.0.1:5000",
        };
        let path = format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"));
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == generated(client, url),
            "update the file: roadstead client-config {client} --url {url} >{path}"
        );
    }
}

#[test]
fn example_configurations_give_complete_client_settings() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples");
    for entry in std::fs::read_dir(folder).expect("the examples") {
        let path = entry.expect("an entry").path();
        // Without the files that it names.
        let text = std::fs::read_to_string(&path).expect("a text");
        let mut config: toml::Table = text.parse().expect("TOML");
        for upstream in config.get_mut("upstream").and_then(toml::Value::as_table_mut).into_iter().flatten() {
            let keys = upstream.1.as_table_mut().expect("a table");
            for key in ["username", "password_file", "ca_file"] {
                keys.remove(key);
            }
        }
        let here = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(here.path(), config.to_string()).expect("the file can be written");
        let printed = |client| generated_with(client, "http://HOST:5000", &["--config", here.path().to_str().unwrap()]);
        let _: serde_json::Value = serde_json::from_str(&printed("docker")).expect("JSON");
        for client in ["containerd", "podman", "buildkit"] {
            let _: toml::Table = printed(client).parse().expect("TOML");
        }
        for upstream in config.get("upstream").and_then(toml::Value::as_table).into_iter().flatten() {
            for client in ["containerd", "k3s", "podman", "buildkit"] {
                assert!(printed(client).contains(upstream.0), "{client}: {}", path.display());
            }
        }
    }
}

#[test]
fn client_config_lists_every_upstream_in_valid_syntax() {
    for client in ["containerd", "k3s", "k3d", "kind", "podman", "buildkit"] {
        for url in ["http://HOST:5000", "https://HOST"] {
            let printed = generated(client, url);
            for upstream in ["docker.io", "ghcr.io", "registry.k8s.io", "HOST"] {
                assert!(printed.contains(upstream), "{client} {url}: {printed}");
            }
            if matches!(client, "containerd" | "podman" | "buildkit") {
                let table: toml::Table = printed.parse().expect("TOML");
                assert!(!table.is_empty());
            }
            assert_eq!(
                printed.contains("http://HOST") || printed.contains("insecure") || printed.contains("http = true"),
                !url.starts_with("https"),
                "{client}: {printed}"
            );
        }
    }
    let docker = generated("docker", "https://HOST");
    let docker: serde_json::Value = serde_json::from_str(&docker).expect("JSON");
    assert_eq!(docker, serde_json::json!({ "registry-mirrors": ["https://HOST"] }));
}
