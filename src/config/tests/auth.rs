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
        ("[auth]\n".to_owned(), "test.toml:1: auth: has no htpasswd; write for example htpasswd = "),
        (good.clone(), "auth: has no htpasswd"),
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

#[test]
fn a_server_with_users_is_not_called_open() {
    let open = "[server]\nlisten = \":5000\"\nexternal_url = \"https://cache.example.com\"\n";
    let text = format!("{open}{}", users("", &rule("\"anonymous\"", "\"**\"", "\"pull\"")));
    assert_eq!(Config::from_toml(&text, "test.toml").unwrap().warnings(None), [""; 0]);
    assert!(Config::from_toml(open, "test.toml").unwrap().warnings(None)[0].contains("configure users with [auth]"));
}
