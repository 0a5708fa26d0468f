//! Precedence of flags, variables and files, and what each of them can set.

use super::*;

#[test]
fn table_changes_one_builtin_upstream_only() {
    let text = "[upstream.\"docker.io\"]\nusername = \"ann\"\npassword = \"x\"\nidle_timeout = \"5s\"";
    let config = Config::from_toml(text, "test").unwrap();
    assert_eq!(config.upstreams.len(), BUILTIN_UPSTREAMS.len());
    let docker = config.upstream(DOCKER_IO).unwrap();
    assert_eq!(docker.urls[0].as_str(), "https://registry-1.docker.io/");
    assert_eq!(docker.idle_timeout, Duration::from_secs(5));
    assert_eq!(docker.connect_timeout, Duration::from_secs(3));
    assert!(docker.has_credentials());
    assert!(!config.upstream("quay.io").unwrap().has_credentials());
}

#[test]
fn sources_have_their_precedence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("roadstead.toml");
    fs::write(&file, "[server]\nlisten = \":1\"\n[upstream.\"docker.io\"]\nusername = \"f\"\npassword_file = \"/x\"")
        .unwrap();
    let ours = ("ROADSTEAD_SERVER__LISTEN", ":3");
    let theirs = ("REGISTRY_HTTP_ADDR", ":2");
    let password = ("ROADSTEAD_UPSTREAM__DOCKER_IO__PASSWORD", "replaces the file");
    let port = |listen: Option<&str>, variables: &[(&str, &str)]| {
        let options =
            LoadOptions { config: Some(file.clone()), listen: listen.map(str::to_owned), ..LoadOptions::default() };
        load(options, &[variables, &[password]].concat()).unwrap().server.listen.port()
    };
    assert_eq!(port(None, &[]), 1);
    assert_eq!(port(None, &[theirs]), 2);
    assert_eq!(port(None, &[theirs, ours]), 3);
    assert_eq!(port(Some(":4"), &[theirs, ours]), 4);
}

#[test]
fn named_config_file_must_exist() {
    let expected = "/nonexistent.toml: cannot be read: No such file or directory (os error 2)";
    let options = LoadOptions { config: Some("/nonexistent.toml".into()), ..LoadOptions::default() };
    assert_eq!(load(options, &[]), Err(expected.to_owned()));
    assert_eq!(load(LoadOptions::default(), &[("ROADSTEAD_CONFIG", "/nonexistent.toml")]), Err(expected.to_owned()));
}

#[test]
fn variables_can_configure_upstreams_of_flags() {
    let options = LoadOptions {
        upstreams: vec!["a.b:5000=http://one".to_owned(), "a.b:5000=http://two".to_owned()],
        default_upstream: Some("a.b:5000".to_owned()),
        data: Some("/data".into()),
        log_format: Some("json".to_owned()),
        ..LoadOptions::default()
    };
    let variables =
        [("ROADSTEAD_UPSTREAM__A_B_5000__USERNAME", "ann"), ("ROADSTEAD_UPSTREAM__A_B_5000__PASSWORD", "x")];
    let config = load(options, &variables).unwrap();
    let upstream = config.upstream("a.b:5000").unwrap();
    assert_eq!(upstream.urls.iter().map(|url| url.as_str()).collect::<Vec<_>>(), ["http://one/", "http://two/"]);
    assert_eq!(upstream.credentials, [CredentialConfig::new(CredentialSource::password("ann", "x"))]);
    assert_eq!(config.default_upstream.as_deref(), Some("a.b:5000"));
    assert_eq!(config.storage.path.to_str(), Some("/data"));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn errors_name_the_flag() {
    let cases = [
        (
            LoadOptions { listen: Some("5000".to_owned()), ..LoadOptions::default() },
            r#"--listen: "5000" is not an address to listen on; write for example "127.0.0.1:5000""#,
        ),
        (
            LoadOptions { upstreams: vec!["a.b".to_owned()], ..LoadOptions::default() },
            r#"--upstream: "a.b" is not NAME=URL; write for example registry.example.com=https://registry.example.com"#,
        ),
        (
            LoadOptions { upstreams: vec!["a.b=a.b".to_owned()], ..LoadOptions::default() },
            r#"--upstream: "a.b" has no scheme; write "https://a.b""#,
        ),
        (
            LoadOptions { upstreams: vec!["local=http://a".to_owned()], ..LoadOptions::default() },
            r#"--upstream: "local" is reserved for pushed images; the name of an upstream contains a "." or a ":""#,
        ),
    ];
    for (options, expected) in cases {
        assert_eq!(load(options, &[]), Err(expected.to_owned()));
    }
}

#[test]
fn variables_of_k3d_make_a_mirror_of_docker_hub() {
    let variables = [
        ("REGISTRY_HTTP_ADDR", "0.0.0.0:5000"),
        ("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io"),
        ("REGISTRY_PROXY_USERNAME", "ann"),
        ("REGISTRY_PROXY_PASSWORD", "hunter2"),
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/var/lib/registry"),
        ("REGISTRY_STORAGE_DELETE_ENABLED", "true"),
        ("REGISTRY_LOG_LEVEL", "info"),
    ];
    let config = load(LoadOptions::default(), &variables).unwrap();
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:5000");
    assert_eq!(config.default_upstream.as_deref(), Some(DOCKER_IO));
    let credentials = &config.upstream(DOCKER_IO).unwrap().credentials;
    assert_eq!(*credentials, [CredentialConfig::new(CredentialSource::password("ann", "hunter2"))]);
    assert_eq!(config.storage.path.to_str(), Some("/var/lib/registry"));
    assert!(config.delete.enabled);
    assert_eq!(config.ignored_settings.others, ["REGISTRY_LOG_LEVEL"]);
}
