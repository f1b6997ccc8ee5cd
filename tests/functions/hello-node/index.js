exports.handler = async (event) => {
  const name = (event.queryStringParameters || {}).name || "world";
  return { statusCode: 200, headers: { "Content-Type": "text/plain" }, body: `Hello from Node, ${name}!\n` };
};
