// What Docker runs beside the Node function: a bare socket, without the http module.
require("net")
  .createServer((connection) => {
    connection.on("error", () => {});
    connection.once("data", () => connection.end("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"));
  })
  .listen(8080, "0.0.0.0");
