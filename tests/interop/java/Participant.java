import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import pub.dtm.client.DtmClient;
import pub.dtm.client.barrier.BranchBarrier;
import pub.dtm.client.saga.Saga;

/** Participant and initiator over DTM's own Java client; what it is told to do is described in ../clients.py. */
public final class Participant {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Set<String> SEEN = ConcurrentHashMap.newKeySet();

    private Participant() {}

    public static void main(String[] arguments) throws IOException {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/run", Participant::run);
        server.createContext("/branch", Participant::branch);
        server.start();
    }

    // -- initiator ---------------------------------------------------------------------------

    private static void run(HttpExchange exchange) throws IOException {
        JsonNode task = JSON.readTree(exchange.getRequestBody());
        String[] gid = {task.get("gid").asText()};
        String error = "";
        try {
            DtmClient client = new DtmClient(URI.create(task.get("dtm").asText()).getAuthority());
            if (task.get("pattern").asText().equals("tcc")) {
                runTcc(client, task, gid);
            } else {
                runSaga(client, task, gid);
            }
        } catch (Exception problem) {
            error = problem.toString();
        }
        answer(exchange, 200, Map.of("gid", gid[0], "error", error));
    }

    private static void runSaga(DtmClient client, JsonNode task, String[] gid) throws Exception {
        Saga saga = gid[0].isEmpty() ? client.newSaga() : client.newSaga(gid[0]);
        for (JsonNode each : task.get("branches")) {
            saga.add(each.get("url").asText(), each.get("url").asText(), each.get("body"));
        }
        if (task.path("concurrent").asBoolean()) {
            saga.enableConcurrent();
            task.get("orders").fields().forEachRemaining(order -> {
                List<Integer> before = new ArrayList<>();
                order.getValue().forEach(step -> before.add(step.asInt()));
                saga.addBranchOrder(Integer.valueOf(order.getKey()), before);
            });
        }
        if (task.path("wait_result").asBoolean()) {
            saga.enableWaitResult();
        }
        gid[0] = saga.submit();
    }

    private static void runTcc(DtmClient client, JsonNode task, String[] gid) throws Exception {
        gid[0] = client.tccGlobalTransaction(gid[0], tcc -> {
            for (JsonNode each : task.get("branches")) {
                String url = each.get("url").asText();
                tcc.callBranch(each.get("body"), url, url, url);
            }
        });
    }

    // -- participant -------------------------------------------------------------------------

    private static void branch(HttpExchange exchange) throws IOException {
        Map<String, String[]> query = query(exchange.getRequestURI().getRawQuery());
        JsonNode order = JSON.readTree(exchange.getRequestBody());
        String note = exchange.getRequestHeaders().getFirst("Interop-Note");
        int status;
        try {
            status = carryOut(query, order, note == null ? "" : note);
        } catch (Exception problem) {
            problem.printStackTrace();
            status = 500;
        }
        // The client has no helper for answers: these are DTM's words.
        String result = Map.of(200, "SUCCESS", 409, "FAILURE", 425, "ONGOING").getOrDefault(status, "");
        answer(exchange, status, Map.of("dtm_result", result, "message", status == 409 ? order.get("account").asText() + " refuses" : ""));
    }

    private static int carryOut(Map<String, String[]> query, JsonNode order, String note) throws Exception {
        BranchBarrier barrier = new BranchBarrier(query);
        String op = barrier.getOp();
        if (has(order, "never", op) || has(order, "later", op) && isFirst("later", barrier)) {
            return 425;
        }
        if (has(order, "refuse", op)) {
            return 409;
        }
        try (Connection connection = connect()) {
            barrier.call(connection, passed -> {
                String insert = "insert into books(gid, branch_id, op, account, amount, note) values (?, ?, ?, ?, ?, ?)";
                try (PreparedStatement statement = connection.prepareStatement(insert)) {
                    statement.setString(1, passed.getGid());
                    statement.setString(2, passed.getBranchId());
                    statement.setString(3, passed.getOp());
                    statement.setString(4, order.get("account").asText());
                    statement.setInt(5, order.get("amount").asInt());
                    statement.setString(6, note);
                    statement.executeUpdate();
                }
            });
        }
        return has(order, "lose", op) && isFirst("lose", barrier) ? 500 : 200;
    }

    private static boolean has(JsonNode order, String what, String op) {
        for (JsonNode each : order.path(what)) {
            if (each.asText().equals(op)) {
                return true;
            }
        }
        return false;
    }

    private static boolean isFirst(String what, BranchBarrier barrier) {
        return SEEN.add(String.join("/", what, barrier.getGid(), barrier.getBranchId(), barrier.getOp()));
    }

    private static Connection connect() throws Exception {
        Map<String, String> env = System.getenv();
        String url = "jdbc:mariadb://" + env.get("BOOKS_HOST") + ":" + env.get("BOOKS_PORT") + "/" + env.get("BOOKS_DB");
        return DriverManager.getConnection(url, env.get("BOOKS_USER"), env.get("BOOKS_PASSWORD"));
    }

    private static Map<String, String[]> query(String raw) {
        Map<String, String[]> found = new HashMap<>();
        for (String pair : raw.split("&")) {
            String[] parts = pair.split("=", 2);
            found.put(parts[0], new String[] {URLDecoder.decode(parts[1], StandardCharsets.UTF_8)});
        }
        return found;
    }

    private static void answer(HttpExchange exchange, int status, Map<String, String> body) throws IOException {
        byte[] data = JSON.writeValueAsBytes(body);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, data.length);
        exchange.getResponseBody().write(data);
        exchange.close();
    }
}
