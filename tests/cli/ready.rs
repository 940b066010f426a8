//! `unmask ready`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;

use crate::{refusal, stdout};

#[test]
fn ready_succeeds_only_where_a_server_says_that_it_is_ready() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        for answer in [
            "200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
            "503 Service Unavailable\r\ncontent-length: 7\r\nconnection: close\r\n\r\nstalled",
        ] {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut lines = BufReader::new(&connection);
            lines.read_line(&mut request).unwrap();
            assert_eq!(request.trim(), "GET /ready HTTP/1.1");
            while lines.read_line(&mut request).unwrap() > 2 {}
            connection
                .write_all(format!("HTTP/1.1 {answer}").as_bytes())
                .unwrap();
        }
    });
    assert_eq!(stdout(&["ready", "--port", &port]), "{}\n");
    let url = format!("http://127.0.0.1:{port}/");
    let refused = refusal(&["ready", "--url", &url]);
    assert!(
        refused.contains("is not ready: status 503") && refused.contains("stalled"),
        "{refused}"
    );
    server.join().unwrap();
    let refused = refusal(&["ready", "--port", &port]);
    assert!(
        refused.contains(&format!("no server answers at http://127.0.0.1:{port}")),
        "{refused}"
    );
}

#[test]
fn ready_goes_by_its_url_whatever_port_the_environment_names() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(["ready", "--url", &url])
        .env("UNMASK_PORT", "9000")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains(&format!("no server answers at {url}")),
        "{error}"
    );
}

#[test]
fn ready_asks_this_machine_past_every_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
        connection.write_all(answer).unwrap();
        let mut request = BufReader::new(connection).lines();
        assert_eq!(request.next().unwrap().unwrap(), "GET /ready HTTP/1.1");
    });
    // A port at which nothing listens.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let proxy = format!("http://{}", proxy.unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
    command.args(["ready", "--port", &port]);
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy"] {
        command.env(name, &proxy);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    server.join().unwrap();
}
