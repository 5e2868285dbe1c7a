"""Apache Kafka by way of aiokafka."""
