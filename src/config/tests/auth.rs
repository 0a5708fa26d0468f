//! `[auth]`: what is accepted, and the errors.

use super::*;

const DEV: &str = "[auth.groups]\ndev = [\"ann\"]\n";

/// Users, with these tables after the keys of `[auth]`.
fn users(keys: &str, tables: &str) -> String {
    format!("[local]\nnamespaces = [\"team/**\", \"my.team/**\"]\n[auth]\nhtpasswd = \"/dev/null\"\n{keys}\n{tables}")
}

fn rule(who: &str, on: &str, may: &str) -> String {
    format!("[[auth.rule]]\nwho = {who}\non = {on}\nmay = {may}\n")
}

fn error(text: &str) -> String {
    Config::from_toml(text, "test.toml").err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn users_groups_and_rules_are_read() {
    let rules = [
        rule("\"anonymous\"", "[\"docker.io/library/*\", \"my.team/x\"]", "\"pull\""),
        rule("[\"group:dev\", \"dan\"]", "\"team/**\"", "[\"pull\", \"push\"]"),
    ];
    let text = users("token_lifetime = \"1h\"", &format!("{DEV}{}", rules.concat()));
    let auth = Config::from_toml(&text, "test.toml").unwrap().auth.unwrap();
    assert_eq!(auth.token_lifetime.as_secs(), 3600);
    assert_eq!(auth.groups["dev"], [Member::User("ann".to_owned())]);
    assert_eq!(auth.rules.len(), 2);
    assert_eq!(auth.rules[1].place, "test.toml:12", "{text}");
    assert_eq!(auth.rules[1].may, [Right::Push, Right::Pull].into_iter().collect());
    assert_eq!(Config::from_toml("", "test.toml").unwrap().auth, None);
}

#[test]
fn errors_name_the_line_the_key_and_what_would_be_right() {
    let good = rule("\"authenticated\"", "\"**\"", "\"pull\"");
    for (text, expected) in [
        ("[auth]\n".to_owned(), "test.toml:1: auth: has no rule"),
        (good.clone(), "test.toml:1: auth: has no htpasswd, so nobody can log in; write for example htpasswd = "),
        (users("", ""), "test.toml:3: auth: has no rule, so nobody could do anything; write [[auth.rule]] with who = "),
        (users("", "rule = []"), "auth: has no rule"),
        (
            format!("[auth]\nhtpasswd = \"/dev/null\"\n{good}"),
            "test.toml:1: auth: needs [local] namespaces, because default_upstream is \"docker.io\"",
        ),
        (
            format!("[auth]\nhtpasswd = \"/nonexistent\"\n{good}")
                .replace("[auth]", "[local]\nnamespaces = \"a/**\"\n[auth]"),
            "test.toml:4: auth.htpasswd: \"/nonexistent\" cannot be read",
        ),
        (users("token_lifetime = \"59s\"", &good), "test.toml:5: auth.token_lifetime: 59s is not from 1m to 1d"),
        (users("token_lifetime = \"25h\"", &good), "auth.token_lifetime: 1d 1h is not from 1m to 1d"),
        (users("token_key_file = \"/nonexistent\"", &good), "auth.token_key_file: \"/nonexistent\" cannot be read"),
        (users("lifetime = \"5m\"", &good), "test.toml:5: auth.lifetime: unknown key"),
        (users("rule = 1", ""), "auth.rule: must be a list of tables; write [[auth.rule]]"),
        (users("groups = 1", &good), "auth.groups: must be a table"),
        (
            users("", &format!("[auth.groups]\ndev = [\"github:acme/*\"]\n{good}")),
            "test.toml:7: auth.groups.dev: \"github:acme/*\" begins with \"github\", and no issuer has this name; known are cert, \
             token, and an issuer is added with [auth.issuer.github]",
        ),
        (
            users("", &format!("[auth.groups]\ndev = [\"ann\", \"a b\"]\n{good}")),
            "test.toml:7: auth.groups.dev: \"a b\" is not the name of a user; a group is a list of users and of identities",
        ),
        (
            users("", &rule("[\"ann\", \"group:dev\"]", "\"**\"", "\"pull\"")),
            "test.toml:7: auth.rule.who: no group is called \"dev\" (there is none); add it to [auth.groups]",
        ),
        (
            users("", &format!("{DEV}{}", rule("\"group:ops\"", "\"**\"", "\"pull\""))),
            "no group is called \"ops\" (there are dev)",
        ),
        (users("", &rule("\"a b\"", "\"**\"", "\"pull\"")), "auth.rule.who: \"a b\" is neither a user nor a group"),
        (
            users("", &rule("[\"ann\", \"tokn:ci\"]", "\"**\"", "\"pull\"")),
            "test.toml:7: auth.rule.who: \"tokn:ci\" begins with an unknown prefix; did you mean \"token:\"?",
        ),
        (users("", &rule("[]", "\"**\"", "\"pull\"")), "auth.rule.who: is empty, so the rule allows nothing"),
        (
            users("", "[[auth.rule]]\nwho = \"ann\"\nmay = \"pull\""),
            "test.toml:6: auth.rule: has no on; write for example on =",
        ),
        (
            users("", &rule("\"ann\"", "\"**\"", "[\"pull\", \"write\"]")),
            "test.toml:9: auth.rule.may: \"write\" is not a right; write \"pull\", \"push\"",
        ),
        (
            users("", &format!("{}private = true\n", rule("\"ann\"", "\"team/**\"", "\"pull\""))),
            "test.toml:10: auth.rule.private: has no effect: it lets users pull private repositories of upstreams",
        ),
        (
            users("", &rule("\"ann\"", "\"docker.io/**\"", "[\"push\", \"delete\"]")),
            "test.toml:9: auth.rule.may: can never allow anything: mirrored repositories can only be pulled",
        ),
        (
            users("", &rule("[\"cert:node-*\", \"cert:a\"]", "\"**\"", "\"pull\"")),
            "test.toml:7: auth.rule.who: is about client certificates, and no client can have one; set server.tls.client_ca",
        ),
        (
            users("", &rule("\"ann\"", "\"Team/**\"", "\"pull\"")),
            "test.toml:8: auth.rule.on: \"Team/**\" matches no repository: names of repositories are in lower case",
        ),
        (
            users("", &rule("\"ann\"", "[\"team/**\", \"quay.example/**\"]", "\"pull\"")),
            "test.toml:8: auth.rule.on: \"quay.example/**\" begins with \"quay.example\", and no upstream has this name; the \
             upstreams are docker.io, gcr.io",
        ),
        (
            users("", &rule("\"ann\"", "\"docker.io/alpine\"", "\"pull\"")),
            "write \"docker.io/library/alpine\" or \"docker.io/**\"",
        ),
        (
            "[server]\nexternal_url = \"cache.example.com\"".to_owned(),
            "has no scheme; write \"https://cache.example.com\"",
        ),
    ] {
        let found = error(&text);
        assert!(found.contains(expected), "{text}\n{found}\n{expected}");
    }
}

/// The table of an issuer, with these keys instead of those that it has.
fn issuer(keys: &[(&str, &str)]) -> String {
    let mut all = std::collections::BTreeMap::from([
        ("audience", "\"cache.example.com\""),
        ("issuer", "\"https://gitlab.example.com\""),
    ]);
    all.extend(keys.iter().copied());
    let lines = all.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key} = {value}\n"));
    format!("[auth.issuer.ci]\n{}", lines.collect::<String>())
}

#[test]
fn issuers_are_read_and_need_no_file_of_users() {
    let require = "{ namespace_id = 1234, ref_protected = true, ref = [\"main\", \"v*\"] }";
    let keys = [("name", "\"project_path\""), ("groups", "\"/realm/roles\""), ("require", require)];
    let rule = rule("[\"ci:acme/*\", \"group:ci:dev\"]", "\"**\"", "\"pull\"");
    let text = format!("[local]\nnamespaces = \"team/**\"\n[auth]\n{}{rule}", issuer(&keys));
    let auth = Config::from_toml(&text, "test.toml").unwrap().auth.unwrap();
    let [issuer] = &auth.issuers[..] else { panic!("{:?}", auth.issuers) };
    assert_eq!((auth.htpasswd, issuer.name.as_str()), (None, "ci"));
    assert_eq!(issuer.audience, ["cache.example.com"]);
    assert_eq!((issuer.name_claim.as_str(), issuer.groups_claim.as_deref()), ("project_path", Some("/realm/roles")));
    let require = |claim: &str| issuer.require[claim].iter().map(ClaimPattern::as_str).collect::<Vec<_>>();
    assert_eq!((require("namespace_id"), require("ref_protected")), (vec!["1234"], vec!["true"]));
    assert_eq!(require("ref"), ["main", "v*"]);
    assert_eq!(issuer.algorithms, [Algorithm::Rs256, Algorithm::Es256]);
    // Machine tokens and certificates need neither users nor an issuer.
    let tls = "[server.tls]\ncert = \"/dev/null\"\nkey = \"/dev/null\"\nclient_ca = \"/dev/null\"\n";
    for (who, tls) in [("token:ci", ""), ("cert:host.example", tls)] {
        let rule = self::rule(&format!("{who:?}"), "\"**\"", "\"pull\"");
        let text = format!("{tls}[local]\nnamespaces = \"team/**\"\n{rule}");
        assert!(Config::from_toml(&text, "test.toml").unwrap().auth.unwrap().htpasswd.is_none(), "{who}");
    }
}

#[test]
fn mistakes_of_an_issuer_are_named_with_what_would_be_right() {
    let github = "\"https://token.actions.githubusercontent.com\"";
    let at = "test.toml:6: auth.issuer.ci";
    for (keys, expected) in [
        (&[("issuer", "")][..], format!("{at}: has no issuer; write the value of iss")),
        (&[("audience", "")], format!("{at}: has no audience, so tokens for every other service would be accepted")),
        (&[("audience", "[]")], format!("{at}: has no audience")),
        (
            &[("issuer", "\"http://gitlab.example.com\"")],
            "test.toml:8: auth.issuer.ci.issuer: \"http://gitlab.example.com\" is http, so anybody on the network could \
             choose the keys; write \"https://gitlab.example.com\""
                .to_owned(),
        ),
        (&[("issuer", "\"gitlab.example.com\"")], "is not an https URL".to_owned()),
        (&[("issuer", "\"https://a.example/?x=1\"")], "is not an https URL".to_owned()),
        (&[("issuer", "\"https://ann:pw@a.example/\"")], "is not an https URL".to_owned()),
        (
            &[("issuer", github)],
            format!(
                "{at}: gives tokens to everybody who has an account there, and require does not say whose are meant; write \
                 for example require = {{ repository_owner_id = \"1234\" }}"
            ),
        ),
        (&[("issuer", github), ("require", "{ ref = \"refs/heads/main\" }")], format!("{at}: gives tokens to everybody")),
        (&[("issuer", github), ("require", "{ repository = \"*/app\" }")], format!("{at}: gives tokens to everybody")),
        (
            &[("issuer", github), ("require", "{ repository = [\"acme/app\", \"**\"] }")],
            format!("{at}: gives tokens to everybody"),
        ),
        (&[("issuer", "\"https://gitlab.com\"")], "require = { namespace_id = \"1234\" }".to_owned()),
        (&[("issuer", "\"https://gitlab.com/\"")], "require = { namespace_id = \"1234\" }".to_owned()),
        (&[("issuer", "\"https://accounts.google.com\"")], "require = { hd = \"example.com\"".to_owned()),
        (&[("algorithms", "\"HS256\"")], "auth.issuer.ci.algorithms: \"HS256\" is not an algorithm that is accepted".to_owned()),
        (&[("algorithms", "\"none\"")], "\"none\" is not an algorithm that is accepted; write \"RS256\"".to_owned()),
        (&[("jwks_file", "\"/nonexistent\"")], "auth.issuer.ci.jwks_file: \"/nonexistent\" cannot be read".to_owned()),
        (
            &[("jwks_file", "\"/dev/null\""), ("ca_file", "\"/dev/null\"")],
            "auth.issuer.ci.ca_file: has no effect, because the keys are read from jwks_file".to_owned(),
        ),
        (&[("require", "{ ref = [] }")], "auth.issuer.ci.require.ref: is empty, so no token would be accepted".to_owned()),
        (&[("require", "{ ref = 1.5 }")], "auth.issuer.ci.require.ref: 1.5 is not the value of a claim".to_owned()),
        (&[("require", "1")], "auth.issuer.ci.require: must be a table".to_owned()),
        (&[("audiences", "\"x\"")], "auth.issuer.ci.audiences: unknown key; did you mean \"audience\"?".to_owned()),
    ] {
        let found = error(&users("", &format!("{}{}", issuer(keys), rule("\"ann\"", "\"**\"", "\"pull\""))));
        assert!(found.contains(&expected), "{keys:?}\n{found}\n{expected}");
    }
    for (name, expected) in [
        ("token", "\"token\" has a meaning of its own in rules"),
        ("group", "has a meaning of its own"),
        ("anonymous", "has a meaning of its own"),
        ("\"a:b\"", "\"a:b\" cannot be the name of an issuer"),
        ("\"a*\"", "cannot be the name of an issuer"),
    ] {
        let table = issuer(&[]).replace("issuer.ci]", &format!("issuer.{name}]"));
        let found = error(&users("", &format!("{table}{}", rule("\"ann\"", "\"**\"", "\"pull\""))));
        assert!(found.contains(expected), "{name}\n{found}");
    }
    let second = issuer(&[]).replace("issuer.ci]", "issuer.zz]");
    let found = error(&users("", &format!("{}{second}", issuer(&[]))));
    assert!(found.contains("auth.issuer.zz: has the same issuer as [auth.issuer.ci]"), "{found}");
    for who in ["c1:x", "group:ci:dev", "group:c1:dev"] {
        let found = error(&users("", &format!("{}{}", issuer(&[]), rule(&format!("{who:?}"), "\"**\"", "\"pull\""))));
        assert!(
            found.contains("did you mean \"ci:\"?") || found.contains("no claim of the issuer has groups"),
            "{found}"
        );
    }
    let found =
        error(&users("", &format!("[auth.groups]\n\"a:b\" = \"ann\"\n{}", rule("\"ann\"", "\"**\"", "\"pull\""))));
    assert!(found.contains("auth.groups.a:b: cannot be the name of a group"), "{found}");
}

#[test]
fn a_server_with_users_is_not_called_open() {
    let open = "[server]\nlisten = \":5000\"\nexternal_url = \"https://cache.example.com\"\n";
    let text = format!("{open}{}", users("", &rule("\"anonymous\"", "\"**\"", "\"pull\"")));
    assert_eq!(Config::from_toml(&text, "test.toml").unwrap().warnings(None), [""; 0]);
    assert!(Config::from_toml(open, "test.toml").unwrap().warnings(None)[0].contains("configure users with [auth]"));
}
