//! The recipes of the README, as somebody copies them: the client tests run with exactly these.

/// The first block of this language below this heading, with our host in the place of `HOST:5000`.
pub fn recipe(heading: &str, language: &str, host: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading} in README"));
    let (_, block) = section.split_once(&format!("\n```{language}\n")).expect("the section has such a block");
    let (block, _) = block.split_once("\n```").expect("a block ends");
    assert!(block.contains("HOST:5000"), "the recipe under {heading} names no host");
    block.replace("HOST:5000", host)
}

/// What `roadstead client-config` prints for this client of the server at this URL.
pub fn generated(client: &str, url: &str) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_roadstead"))
        .args(["client-config", client, "--url", url])
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a text")
}

#[test]
fn the_recipes_of_the_readme_are_what_the_program_prints() {
    for (heading, language, client) in [
        ("### Docker", "json", "docker"),
        ("### k3s and k3d", "yaml", "k3s"),
        ("### k3s and k3d", "yaml", "k3d"),
        ("### podman, buildah, skopeo, CRI-O", "toml", "podman"),
    ] {
        let printed = generated(client, "http://HOST:5000");
        let recipe = recipe(heading, language, "HOST:5000");
        assert!(printed.contains(&recipe), "{client} prints\n{printed}\nand the README has\n{recipe}");
    }
}

#[test]
fn every_upstream_is_in_what_is_printed_and_every_format_is_its_clients() {
    for client in ["containerd", "k3s", "k3d", "kind", "podman", "buildkit"] {
        for url in ["http://HOST:5000", "https://HOST"] {
            let printed = generated(client, url);
            for upstream in ["docker.io", "ghcr.io", "registry.k8s.io", "HOST"] {
                assert!(printed.contains(upstream), "{client} {url}: {printed}");
            }
            if client == "podman" || client == "buildkit" {
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
