//! Settings of `registry:2`: its configuration file and its variables.

use super::*;

/// The configuration file in the `registry:2` image, with further settings.
const REGISTRY_YAML: &str = r#"
version: 0.1
log:
  level: debug
  formatter: logstash
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
  delete:
    enabled: true
http:
  addr: :5000
  tls:
    certificate: /certs/tls.crt
    key: /certs/tls.key
    clientcas:
      - /certs/ca.pem
  headers:
    X-Content-Type-Options: [nosniff]
proxy:
  remoteurl: https://registry-1.docker.io
  username: ann
  password: 'hunter2'
"#;

#[test]
fn registry_2_file_is_read_below_its_variables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    let load_file = |text: &str, variables: &[(&str, &str)]| {
        fs::write(&path, text).unwrap();
        load(LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() }, variables)
    };
    let config =
        load_file(REGISTRY_YAML, &[("REGISTRY_PROXY_USERNAME", "bob"), ("REGISTRY_HTTP_SECRET", "x")]).unwrap();
    assert_eq!(config.server.listen.to_string(), ":5000");
    let tls = config.server.tls.as_ref().unwrap();
    assert_eq!(tls.cert.to_str(), Some("/certs/tls.crt"));
    assert_eq!(tls.client_ca.as_ref().and_then(|path| path.to_str()), Some("/certs/ca.pem"));
    assert_eq!(config.storage.path.to_str(), Some("/var/lib/registry"));
    assert_eq!(config.default_upstream.as_deref(), Some(DOCKER_IO));
    let hub = config.upstream(DOCKER_IO).unwrap();
    let [CredentialConfig { source: CredentialSource::Password { username, password }, .. }] = &hub.credentials[..]
    else {
        panic!("one login: {:?}", hub.credentials);
    };
    assert_eq!((username.as_str(), password.expose()), ("bob", "hunter2"));
    assert!(config.delete.enabled);
    assert_eq!(config.log.format, LogFormat::Json);
    let file = path.display();
    let headers = config.server.response_headers.iter();
    let headers: Vec<_> = headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers, [("x-content-type-options", "nosniff")]);
    let ignored = ["log.fields.service", "log.level"];
    let mut ignored: Vec<String> = ignored.iter().map(|key| format!("{file}: {key}")).collect();
    ignored.insert(0, "REGISTRY_HTTP_SECRET".to_owned());
    ignored.push(format!("{file}: storage.cache.blobdescriptor"));
    assert_eq!(config.ignored_settings.others, ignored);

    for (text, expected) in [
        (
            "http: {addr: 5000}",
            r#": http.addr: "5000" is not an address to listen on; write for example "127.0.0.1:5000""#,
        ),
        ("proxy: {remoteurl: docker.io}", r#": proxy.remoteurl: "docker.io" has no scheme; write "https://docker.io""#),
        ("- a", ": is not a configuration file of registry:2"),
        ("http: {headers: {'X A': [b]}}", r#": http.headers.X A.0: "X A" is not the name of a header"#),
        (
            "http: {headers: {X-A: [b, \"c\\rd\"]}}",
            ": http.headers.X-A.1: the value has a character that a header cannot have",
        ),
        (
            "http: {headers: {Transfer-Encoding: [chunked]}}",
            ": http.headers.Transfer-Encoding.0: the server sets the header transfer-encoding itself; remove it",
        ),
    ] {
        assert_eq!(load_file(text, &[]), Err(format!("{file}{expected}")));
    }
    let error = load_file("http: {addr: ':5000'", &[]).unwrap_err();
    assert!(error.starts_with(&format!("{file}: ")) && !error.contains('\n'), "{error}");
    fs::remove_file(&path).unwrap();
    let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
    assert!(load(options, &[]).unwrap_err().contains("cannot be read"));
}

#[test]
fn a_variable_replaces_the_setting_of_the_file_with_all_below_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    let text = "http:\n  headers:\n    X-A: [one, two]\n    X-B: [three]\n    X-A-More: [four]\nlog: {level: info}\n";
    fs::write(&path, text).unwrap();
    let options = || LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
    for (variable, value, expected) in [
        ("REGISTRY_HTTP_HEADERS_X-A", "[five]", "x-a-more: four, x-a: five, x-b: three"),
        ("REGISTRY_HTTP_HEADERS_x-a", "'five'", "x-a-more: four, x-a: five, x-b: three"),
        ("REGISTRY_HTTP_HEADERS_X-A_1", "six", "x-a-more: four, x-a: one, x-a: six, x-b: three"),
        ("REGISTRY_HTTP_HEADERS", "{X-C: [seven]}", "x-c: seven"),
        ("REGISTRY_HTTP_HEADERS", "", "x-a-more: four, x-a: one, x-a: two, x-b: three"),
    ] {
        let config = load(options(), &[(variable, value)]).unwrap();
        let headers = config.server.response_headers.iter();
        let mut headers: Vec<_> = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        headers.sort();
        assert_eq!(headers.join(", "), expected, "{variable}={value}");
        let shown = config.to_toml(None);
        assert!(expected.split(", ").all(|header| shown.contains(header.split_once(": ").unwrap().0)), "{shown}");
        assert_eq!(Config::from_toml(&shown, "shown").err(), None, "what check prints is a configuration file");
    }
}

#[test]
fn registry_2_password_is_read_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    for (written, meant) in [
        ("0123", "0123"),
        ("'0123'", "0123"),
        ("1e3", "1e3"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("yes", "yes"),
        ("True", "True"),
        ("1.0", "1.0"),
        ("2026-11-21", "2026-11-21"),
        ("\"a\\tb\"", "a\tb"),
        ("*again", "ann"),
    ] {
        let text = format!(
            "version: 0.1\nstorage: {{delete: {{enabled: yes}}}}\nproxy:\n  remoteurl: https://ghcr.io\n  \
             username: &again ann\n  password: {written}\n"
        );
        fs::write(&path, text).unwrap();
        let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
        let config = load(options, &[]).unwrap();
        let expected = CredentialConfig::new(CredentialSource::password("ann", meant));
        assert_eq!(config.upstream("ghcr.io").unwrap().credentials, [expected], "{written}");
        assert!(config.delete.enabled);
    }
}

#[test]
fn registry_2_file_errors_never_repeat_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    for (lines, place) in [
        ("password: hunter2\n  password: hunter3", "contains a key twice, at line 5 column 3"),
        ("password: \"hunter2", "line"),
        ("password: hunter2\n hunter3: x", "line"),
        ("password: *hunter2", "line 4 column 13"),
        ("password: [hunter2", "line"),
        ("password: {hunter2", "line"),
        ("password: !!int hunter2", "line"),
        ("password: hunter2\n  <<: hunter3", "line"),
        ("password: hunter2\n\0", "line"),
        ("? [hunter2]\n  : x", "line"),
    ] {
        fs::write(&path, format!("version: 0.1\nproxy:\n  username: ann\n  {lines}\n")).unwrap();
        let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
        let error = load(options, &[]).err().unwrap_or_default();
        assert!(error.contains(place) && !error.contains("hunter"), "{lines}: {error}");
    }
}

#[test]
fn ignored_registry_2_logins_give_their_own_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    fs::write(&path, "auth: {token: {realm: x, service: y}}\nlog: {level: info}").unwrap();
    let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
    let warnings = load(options, &[("REGISTRY_AUTH_TOKEN_REALM", "https://x")]).unwrap().warnings(None);
    for named in ["auth.token.service", "REGISTRY_AUTH_TOKEN_REALM"] {
        assert!(
            warnings[0].starts_with("these settings of registry:2 about logins") && warnings[0].contains(named),
            "{warnings:?}"
        );
    }
    let others = warnings.iter().find(|warning| warning.contains("log.level")).unwrap();
    assert!(!others.contains("auth"), "{others}");
}

#[test]
fn the_users_of_registry_2_may_do_everything_that_is_switched_on() {
    let folder = tempfile::tempdir().unwrap();
    let (path, users) = (folder.path().join("config.yml"), folder.path().join("htpasswd"));
    fs::write(&users, "").unwrap();
    let users = users.display().to_string();
    fs::write(&path, format!("auth: {{htpasswd: {{realm: x, path: {users}}}}}\n")).unwrap();
    let of_file = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
    let variables = [
        ("REGISTRY_AUTH", "htpasswd"),
        ("REGISTRY_AUTH_HTPASSWD_REALM", "x"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", users.as_str()),
    ];
    for (options, variables) in [(of_file.clone(), &[][..]), (LoadOptions::default(), &variables[..])] {
        for (deletes, may) in [("false", "{Pull, Push}"), ("true", "{Pull, Push, Delete}")] {
            let variables = [variables, &[("REGISTRY_STORAGE_DELETE_ENABLED", deletes)]].concat();
            let config = load(options.clone(), &variables).unwrap();
            let auth = config.auth.as_ref().unwrap();
            let file = auth.htpasswd.as_ref().map(|file| file.display().to_string());
            assert_eq!((file, auth.is_of_registry_2), (Some(users.clone()), true));
            let [rule] = &auth.rules[..] else { panic!("{:?}", auth.rules) };
            assert_eq!((&rule.who[..], rule.on[0].as_str()), (&[Subject::Authenticated][..], "**"));
            assert_eq!(format!("{:?}", rule.may), may);
            assert_eq!(config.ignored_settings, IgnoredSettings::default());
            assert_eq!(config.default_upstream.as_deref(), Some(DOCKER_IO), "what is pushed is local, as ever");
            let shown = config.to_toml(None);
            assert!(shown.contains("# [[auth.rule]]") && shown.contains("# may = "), "{shown}");
        }
    }
    // A rule of our own replaces the one that is implied.
    let ours = folder.path().join("roadstead.toml");
    let text = "default_upstream = \"none\"\n[auth]\n[[auth.rule]]\nwho = \"ann\"\non = \"**\"\nmay = \"pull\"\n";
    fs::write(&ours, text).unwrap();
    let auth = load(LoadOptions { config: Some(ours), ..of_file }, &[]).unwrap().auth.unwrap();
    assert_eq!((auth.rules.len(), auth.is_of_registry_2, auth.rules[0].may), (1, false, Right::Pull.into()));
}

#[test]
fn logins_of_registry_2_without_a_file_of_users_do_not_start_an_open_server() {
    let error = |variables: &[(&str, &str)]| load(LoadOptions::default(), variables).err().unwrap_or_default();
    for variables in [&[("REGISTRY_AUTH", "htpasswd")][..], &[("REGISTRY_AUTH_HTPASSWD_REALM", "x")]] {
        assert!(error(variables).contains("set auth.htpasswd.path (REGISTRY_AUTH_HTPASSWD_PATH)"), "{variables:?}");
    }
    let missing = error(&[("REGISTRY_AUTH_HTPASSWD_PATH", "/nonexistent/htpasswd")]);
    assert!(missing.starts_with("REGISTRY_AUTH_HTPASSWD_PATH: ") && missing.contains("cannot be read"), "{missing}");
}

#[test]
fn registry_2_readonly_mode_disables_pushes_and_deletes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    for (enabled, writable) in [("true", false), ("false", true)] {
        let text = format!(
            "storage: {{delete: {{enabled: true}}, maintenance: {{readonly: {{enabled: {enabled}}}}}}}\nhttp: {{}}"
        );
        fs::write(&path, text).unwrap();
        let options = LoadOptions { registry_config: Some(path.clone()), ..LoadOptions::default() };
        let config = load(options, &[]).unwrap();
        assert_eq!((config.push.enabled, config.delete.enabled), (writable, writable));
        assert_eq!(config.ignored_settings.others, [""; 0]);
    }
}
