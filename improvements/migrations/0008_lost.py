from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("improvements", "0007_drills")]

    operations = [
        migrations.AddField(
            model_name="trafficslice",
            name="lost",
            field=models.PositiveIntegerField(
                default=0,
                help_text="Requests of which the proxy's line never came, by the second in which they were missed.",
            ),
        ),
    ]
