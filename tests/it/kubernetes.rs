//! The manifests for Kubernetes and the Helm chart agree with the program: version, ports, paths and configuration.
//!
//! `make kubernetes` gives the same manifests to an API server, which needs Go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_roadstead");
const VERSION: &str = env!("CARGO_PKG_VERSION");
const IMAGE: &str = "ghcr.io/roadstead/roadstead";
const SHAPES: [(&str, &str); 2] = [("shared", "statefulset.yaml"), ("per-node", "daemonset.yaml")];

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn workload(shape: &str, file: &str) -> Value {
    yaml(&format!("kubernetes/{shape}/{file}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All containers of a pod, with the init containers.
fn containers(pod: &Value) -> Vec<&Value> {
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"])).collect()
}

fn words(value: &Value) -> Vec<&str> {
    list(value).iter().map(|word| word.as_str().unwrap()).collect()
}

/// The configuration file, checked by the program, as the program understands it.
fn checked(config: &str) -> toml::Table {
    let output = Command::new(PROGRAM).args(["check", "--config"]).arg(deploy(config)).output().unwrap();
    // There may be warnings, because the disk of this machine is another one.
    assert!(output.status.success(), "{config}: {output:?}");
    String::from_utf8(output.stdout).unwrap().parse().expect("TOML")
}

#[test]
fn every_manifest_is_yaml_of_one_document() {
    for folder in ["kubernetes/base", "kubernetes/shared", "kubernetes/per-node"] {
        for entry in fs::read_dir(deploy(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".yaml") {
                let manifest = yaml(&format!("{folder}/{name}"));
                assert!(manifest["apiVersion"].is_string() && manifest["kind"].is_string(), "{folder}/{name}");
            }
        }
    }
}

#[test]
fn images_have_the_version_of_the_program() {
    for (shape, file) in SHAPES {
        let kustomization = yaml(&format!("kubernetes/{shape}/kustomization.yaml"));
        assert_eq!(kustomization["images"], json!([{ "name": IMAGE, "newTag": VERSION }]), "{shape}");
        for container in containers(&workload(shape, file)["spec"]["template"]["spec"]) {
            assert_eq!(container["image"], IMAGE, "{shape}: the tag is in kustomization.yaml only");
        }
    }
    let chart = yaml("helm/roadstead/Chart.yaml");
    assert_eq!([&chart["version"], &chart["appVersion"]], [VERSION, VERSION]);
    assert_eq!(yaml("helm/roadstead/values.yaml")["image"]["repository"], IMAGE);
}

#[test]
fn ports_and_folders_are_those_of_the_configuration() {
    for (shape, file) in SHAPES {
        let pod = &workload(shape, file)["spec"]["template"]["spec"];
        let config = checked(&format!("kubernetes/{shape}/roadstead.toml"));
        let server = &list(&pod["containers"])[0];
        let listen = config["server"]["listen"].as_str().unwrap();
        let port = server["ports"][0]["containerPort"].as_u64().unwrap();
        assert!(listen.ends_with(&format!(":{port}")), "{shape}: {listen}");
        let mounts: Vec<_> = list(&server["volumeMounts"]).iter().map(|mount| &mount["mountPath"]).collect();
        assert_eq!(mounts, [config["storage"]["path"].as_str().unwrap(), "/etc/roadstead"], "{shape}");
        assert_eq!(words(&server["args"]), ["serve", "--config", "/etc/roadstead/roadstead.toml"], "{shape}");
        assert_eq!(config["push"]["enabled"].as_bool(), Some(false), "{shape}: nobody has to log in");
        for (probe, path) in
            [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
        {
            let request = &server[probe]["httpGet"];
            assert_eq!((request["path"].as_str(), request["port"].as_str()), (Some(path), Some("http")), "{shape}");
            assert_eq!(request["host"].is_string(), shape == "per-node", "127.0.0.1 is reachable on the node only");
        }
        let drain = config["server"]["drain_timeout"].as_str().unwrap();
        assert_eq!((drain, pod["terminationGracePeriodSeconds"].as_u64()), ("20s", Some(30)), "{shape}");
    }
    let service = yaml("kubernetes/shared/service.yaml");
    assert_eq!(
        (&service["spec"]["ports"][0]["port"], &service["spec"]["ports"][0]["targetPort"]),
        (&json!(5000), &json!("http"))
    );
}

#[test]
fn containers_have_the_least_rights() {
    for (shape, file) in SHAPES {
        let pod = &workload(shape, file)["spec"]["template"]["spec"];
        assert_eq!((&pod["automountServiceAccountToken"], &pod["enableServiceLinks"]), (&json!(false), &json!(false)));
        let security = &pod["securityContext"];
        for (key, value) in [("runAsNonRoot", json!(true)), ("runAsUser", json!(65532)), ("fsGroup", json!(65532))] {
            assert_eq!(security[key], value, "{shape}: {key}");
        }
        assert_eq!(security["seccompProfile"], json!({ "type": "RuntimeDefault" }), "{shape}");
        for container in containers(pod) {
            let name = container["name"].as_str().unwrap();
            let security = &container["securityContext"];
            assert_eq!(security["readOnlyRootFilesystem"], true, "{shape}: {name}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{shape}: {name}");
            let added = if name == "data-folder" { json!(["CHOWN"]) } else { Value::Null };
            let capabilities = &security["capabilities"];
            assert_eq!((&capabilities["drop"], &capabilities["add"]), (&json!(["ALL"]), &added), "{shape}: {name}");
            assert_eq!(security["runAsUser"] == 0, name != "roadstead", "{shape}: {name}");
            let limits = container["resources"]["limits"].as_object().unwrap();
            assert_eq!(limits.keys().collect::<Vec<_>>(), ["memory"], "{shape}: {name}");
        }
    }
}

#[test]
fn commands_beside_the_server_are_valid() {
    let pod = &workload("per-node", "daemonset.yaml")["spec"]["template"]["spec"];
    let config = checked("kubernetes/per-node/roadstead.toml");
    let (init, hosts) = (&containers(pod)[0], &containers(pod)[2]);
    assert_eq!(words(&init["args"])[..3], ["prepare-data", "--data", config["storage"]["path"].as_str().unwrap()]);
    let listen = config["server"]["listen"].as_str().unwrap();
    let folder = hosts["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let url = format!("http://{listen}");
    assert_eq!(
        words(&hosts["args"]),
        ["client-config", "containerd", "--url", &url, "--write", folder, "--until-stopped"]
    );
    let user = &pod["securityContext"]["runAsUser"];
    assert_eq!(words(&init["args"])[4], format!("{user}:{}", pod["securityContext"]["runAsGroup"]));
}

#[test]
fn the_chart_has_the_configuration_of_the_manifests() {
    for (shape, _) in SHAPES {
        checked(&format!("helm/roadstead/files/{shape}.toml"));
        let table = |path: String| text(&path).parse::<toml::Table>().expect("TOML");
        let chart = table(format!("helm/roadstead/files/{shape}.toml"));
        let mut manifests = table(format!("kubernetes/{shape}/roadstead.toml"));
        // The chart sets these by options of the command.
        manifests.remove("server");
        manifests.remove("storage");
        assert_eq!(chart, manifests, "{shape}");
    }
}

#[test]
fn values_and_their_schema_have_the_same_keys() {
    let schema: Value = serde_json::from_str(&text("helm/roadstead/values.schema.json")).unwrap();
    compare(&yaml("helm/roadstead/values.yaml"), &schema, "values");
}

/// Tables whose keys the schema lists must have these keys, and no others may be accepted.
fn compare(values: &Value, schema: &Value, path: &str) {
    let (Some(values), Some(keys)) = (values.as_object(), schema["properties"].as_object()) else { return };
    assert_eq!(schema["additionalProperties"], false, "{path}: a misspelt key must be an error");
    let mut documented: Vec<_> = values.keys().collect();
    let mut accepted: Vec<_> = keys.keys().filter(|key| *key != "global").collect();
    documented.sort();
    accepted.sort();
    assert_eq!(documented, accepted, "{path}");
    for (key, value) in values {
        compare(value, &keys[key], &format!("{path}.{key}"));
    }
}

#[test]
fn kustomize_renders_both_shapes() {
    let kubectl = |path: &Path| Command::new("kubectl").arg("kustomize").arg(path).output();
    for (shape, file) in SHAPES {
        let Ok(output) = kubectl(&deploy(&format!("kubernetes/{shape}"))) else {
            eprintln!("kubectl is not installed, so nothing was rendered");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{shape}: {}", String::from_utf8_lossy(&output.stderr));
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
        let source = workload(shape, file);
        let kind = source["kind"].as_str().unwrap();
        for wanted in ["Namespace", "ServiceAccount", "ConfigMap", kind] {
            assert_eq!(kinds.iter().filter(|kind| **kind == wanted).count(), 1, "{shape}: {wanted}");
        }
        let namespace = documents.iter().find(|document| document["kind"] == "Namespace").unwrap();
        for document in documents.iter().filter(|document| document["kind"] != "Namespace") {
            assert_eq!(document["metadata"]["namespace"], namespace["metadata"]["name"], "{shape}");
        }
        let config = documents.iter().find(|document| document["kind"] == "ConfigMap").unwrap();
        let pod = &documents.iter().find(|document| document["kind"] == kind).unwrap()["spec"]["template"]["spec"];
        let named = list(&pod["volumes"]).iter().find_map(|volume| volume["configMap"]["name"].as_str());
        assert_eq!(named, config["metadata"]["name"].as_str(), "{shape}: the hash of the configuration");
        for container in containers(pod) {
            assert_eq!(container["image"], format!("{IMAGE}:{VERSION}"), "{shape}");
        }
    }
}
